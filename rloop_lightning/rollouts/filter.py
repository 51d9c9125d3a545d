"""Selects the expert set from the rollout pool: the successes on hard problems (RLoop, arXiv 2511.04285).

    stats = build_expert_set(pool, run / "round-0" / "expert.parquet", FilterConfig(), seed=0)

The filter makes two passes over the shards, in memory that does not grow with the pool. The first pass counts every
problem's rollouts and successes; the second keeps successes of the hard problems. The expert set depends on the pool's
rollouts and the seed, not on the order or number of the shards. Large pools are read by several processes
(shard_processes.py). reach.py says which problems can be hard at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rloop_lightning.rollouts.expert_draw import DrawRules
from rloop_lightning.rollouts.expert_set import write_expert_set
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.pool_scan import sum_counts
from rloop_lightning.rollouts.reach import fewest_rollouts
from rloop_lightning.rollouts.shard_processes import counts_of, draw_from, processes_for
from rloop_lightning.system.fields import LeftOpenUnitInterval, NonNegativeInt, check_fields


@dataclass(frozen=True)
class FilterConfig:
    """Selects which rollouts of the pool enter the expert set.

    Args:
        enabled: keep successes of hard problems only. False keeps the successes of every problem, the ablation without
            the hard-problem filter; `max_per_problem` and `deduplicate` still apply.
        max_success_rate: a problem is hard if 0 < success rate < this (fraction; 0.10 in the paper).
        rate_over: the rollouts that a success rate counts: those of the `round`'s exploration (as in the paper), or of
            the whole `run` so far. The expert set's rollouts are always the round's.
        finished_only: leave out successes that were truncated at the length limit. Fine-tuning on them teaches the
            policy not to end its completions.
        max_per_problem: maximum number of rollouts per problem, drawn at random, so that a few problems don't dominate;
            0 is no limit.
        deduplicate: among a problem's rollouts with identical completion tokens, keep the earliest.
        control: `random` replaces the expert set by as many rollouts drawn at random from the successes of all
            problems, with the same `finished_only`, `deduplicate` and `max_per_problem`. It is the control for the
            claim that hard problems matter: training differs in which problems are in the set, not in its size.
    """

    enabled: bool = True
    max_success_rate: LeftOpenUnitInterval = 0.10
    rate_over: Literal["round", "run"] = "round"
    finished_only: bool = True
    max_per_problem: NonNegativeInt = 8
    deduplicate: bool = True
    control: Literal["none", "random"] = "none"

    def __post_init__(self) -> None:
        check_fields(self, "--filter")
        if self.control == "random" and not self.enabled:
            raise ValueError(
                "--filter.control random takes as many rollouts as the hard-problem filter would, but --filter.enabled "
                "is false; leave one of them out"
            )

    def rules(self, seed: int) -> DrawRules:
        """How rollouts of a problem are drawn."""
        return DrawRules(seed, self.max_per_problem, self.deduplicate, self.finished_only)


@dataclass(frozen=True)
class ExpertStats:
    """The filter's counts. `hard_successes` = `kept` + `truncated` + `duplicates` + `over_cap`.

    With `--filter.control random` they tell what the hard-problem filter selects, and `kept_problems` and `kept_hard`
    what the control of the same size consists of.

    Args:
        problems_seen: problems in the pool.
        rollouts_seen: rollouts in the pool.
        successes: rollouts in the pool that are successes.
        within_reach: problems in the pool with enough rollouts that one success would make them hard.
        hard_problems: hard problems; with `enabled` false, problems with a success.
        hard_successes: successes of these problems.
        kept: rollouts in the expert set.
        truncated: successes of these problems that were truncated, and so left out.
        duplicates: further copies of the rollouts in the expert set.
        over_cap: successes of these problems, copies included, beyond `max_per_problem`.
        kept_problems: problems of the rollouts in the expert set.
        kept_hard: rollouts in the expert set that are of `hard_problems`; fewer than `kept` only with the control.
    """

    problems_seen: int
    rollouts_seen: int
    successes: int
    within_reach: int
    hard_problems: int
    hard_successes: int
    kept: int
    truncated: int
    duplicates: int
    over_cap: int
    kept_problems: int
    kept_hard: int

    def why_empty(self, config: FilterConfig) -> str:
        """Why the expert set has no rollouts, with the options of the filter that decide it."""
        if self.successes == 0:
            return f"none of the {self.rollouts_seen:,} rollouts is a success"
        if self.hard_problems:
            return f"all {self.truncated:,} successes of the hard problems were truncated (--filter.finished_only)"
        rate = f"--filter.max_success_rate {config.max_success_rate:g}"
        if self.within_reach == 0:
            return (
                f"{self.successes:,} of {self.rollouts_seen:,} rollouts are successes, but no problem has the "
                f"{fewest_rollouts(config.max_success_rate)} rollouts that a success rate below {rate} takes"
            )
        return f"no problem that the round solved has a success rate below {rate} ({self.successes:,} successes)"

    def metrics(self) -> dict[str, float]:
        """The counts under their metric names."""
        return {
            "pool/problems": self.problems_seen,
            "pool/rollouts": self.rollouts_seen,
            "pool/successes": self.successes,
            "expert/problems_within_reach": self.within_reach,
            "expert/hard_problems": self.hard_problems,
            "expert/hard_successes": self.hard_successes,
            "expert/rollouts": self.kept,
            "expert/truncated": self.truncated,
            "expert/duplicates": self.duplicates,
            "expert/over_cap": self.over_cap,
            "expert/problems": self.kept_problems,
            "expert/rollouts_of_hard_problems": self.kept_hard,
        }


def build_expert_set(
    pool: RolloutPool,
    out: Path,
    config: FilterConfig,
    seed: int,
    *,
    earlier: Sequence[RolloutPool] = (),
    processes: int | None = None,
) -> ExpertStats:
    """Write the pool's expert set to `out` atomically. An empty set is written too.

    Rows are sorted by problem id. The same rollouts, config and seed give the same bytes, whatever the number of
    processes. Memory grows with the number of problems and of kept rows, not with the pool.

    Args:
        pool: every rollout of a round's exploration.
        out: the Parquet file.
        config: the selection.
        seed: seed of the draw from a problem with more than `config.max_per_problem` successes.
        earlier: the pools of earlier rounds, for `config.rate_over` run.
        processes: processes that read the shards; None takes one for each core if the pool is large.
    """
    shards = pool.shards()
    before = [path for one in earlier for path in one.shards()] if config.rate_over == "run" else []
    processes = processes_for([*before, *shards]) if processes is None else processes
    counts = counts_of(shards, processes)
    rated = counts
    if before:
        rated = sum_counts([counts_of(before, processes), counts])
        rated = rated.filter(pc.is_in(rated["problem_id"], counts["problem_id"]))
    solved = _solved(counts)
    hard = {name for name in rated["problem_id"].filter(pa.array(is_hard(rated, config))).to_pylist() if name in solved}
    rules = config.rules(seed)
    selected = draw_from(shards, hard, rules, processes)
    drawn = selected.rows()
    duplicates = sum(copies for _, copies in drawn) - len(drawn)
    if config.control == "random" and drawn:
        control = replace(rules, control_size=len(drawn))
        drawn = draw_from(shards, solved.keys(), control, processes).rows()
    write_expert_set(out, drawn)
    hard_successes = sum(solved[problem_id] for problem_id in hard)
    return ExpertStats(
        problems_seen=len(counts),
        rollouts_seen=int(counts["rollouts"].to_numpy().sum()),
        successes=sum(solved.values()),
        within_reach=int((rated["rollouts"].to_numpy() >= fewest_rollouts(config.max_success_rate)).sum()),
        hard_problems=len(hard),
        hard_successes=hard_successes,
        kept=len(drawn),
        truncated=selected.truncated,
        duplicates=duplicates,
        over_cap=hard_successes - selected.truncated - len(drawn) - duplicates,
        kept_problems=len({row.problem_id for row, _ in drawn}),
        kept_hard=sum(row.problem_id in hard for row, _ in drawn),
    )


def _solved(counts: pa.Table) -> dict[str, int]:
    """The number of successes of each problem that has some."""
    some = counts.filter(pa.array(counts["successes"].to_numpy() > 0))
    return dict(zip(some["problem_id"].to_pylist(), some["successes"].to_pylist(), strict=True))


def is_hard(rated: pa.Table, config: FilterConfig) -> np.ndarray:
    """Mask of the problems whose successes the filter takes.

    Args:
        rated: counts of rollouts and successes, from `count_rollouts`.
        config: the selection.
    """
    rollouts, successes = rated["rollouts"].to_numpy(), rated["successes"].to_numpy()
    if not config.enabled:
        return successes > 0
    # The quotient is the double nearest to the rate, like a literal such as 0.10. So 1 of 10 is not below 0.10.
    return (successes > 0) & (successes / rollouts < config.max_success_rate)
