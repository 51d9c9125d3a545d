"""Selects the expert set from the rollout pool: the successes on hard problems (RLoop, arXiv 2511.04285).

    stats = build_expert_set(pool, run / "round-0" / "expert.parquet", FilterConfig(), seed=0)

The filter makes two passes over the shards, in memory that does not grow with the pool. The first pass counts every
problem's rollouts and successes; the second keeps successes of the hard problems. The expert set depends on the pool's
rollouts and the seed, not on the order or number of the shards. reach.py says which problems can be hard at all.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from rloop_lightning.rollouts.draw import ProblemDraw, SizedDraw, content_digest
from rloop_lightning.rollouts.expert_set import write_expert_set
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.pool_scan import Success, count_rollouts, successes_of
from rloop_lightning.rollouts.reach import fewest_rollouts
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


@dataclass(frozen=True)
class ExpertStats:
    """The filter's counts. `hard_successes` = `kept` + `truncated` + `duplicates` + `over_cap`.

    With `--filter.control random` they tell what the hard-problem filter selects, and `kept_problems` and `kept_hard`
    what the control of the same size consists of.

    Args:
        problems_seen: problems in the pool.
        rollouts_seen: rollouts in the pool.
        successes: rollouts in the pool that are successes.
        within_reach: problems with enough rollouts that one success would make them hard.
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
        return f"no problem that was ever solved has a success rate below {rate} ({self.successes:,} successes)"

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
    pool: RolloutPool, out: Path, config: FilterConfig, seed: int, *, earlier: Sequence[RolloutPool] = ()
) -> ExpertStats:
    """Write the pool's expert set to `out` atomically. An empty set is written too.

    Rows are sorted by problem id. The same rollouts, config and seed give the same bytes. Memory grows with the number
    of problems and of kept rows, not with the pool.

    Args:
        pool: every rollout of a round's exploration.
        out: the Parquet file.
        config: the selection.
        seed: seed of the draw from a problem with more than `config.max_per_problem` successes.
        earlier: the pools of earlier rounds, for `config.rate_over` run.
    """
    counts = count_rollouts(pool)
    rated = counts if config.rate_over == "round" else count_rollouts(*earlier, pool)
    taken = set(rated["problem_id"].filter(pa.array(is_hard(rated, config))).to_pylist())
    solved = dict(zip(counts["problem_id"].to_pylist(), counts["successes"].to_pylist(), strict=True))
    hard_draws = {
        problem_id: _problem_draw(config)
        for problem_id in sorted(taken.intersection(name for name, count in solved.items() if count))
    }
    truncated = 0
    key = str(seed).encode()
    for row in successes_of(pool, hard_draws.keys()):
        if config.finished_only and row.finish_reason != "stop":
            truncated += 1
        else:
            hard_draws[row.problem_id].offer(success_digest(row, key, config.deduplicate), row)

    drawn = [entry for draw in hard_draws.values() for entry in draw.sorted()]
    duplicates = sum(copies for _, copies in drawn) - len(drawn)
    if config.control == "random":
        drawn = _random_control(pool, {name for name, count in solved.items() if count}, len(drawn), config, key)
    write_expert_set(out, drawn)
    hard_successes = sum(solved[problem_id] for problem_id in hard_draws)
    return ExpertStats(
        problems_seen=len(counts),
        rollouts_seen=int(counts["rollouts"].to_numpy().sum()),
        successes=sum(solved.values()),
        within_reach=int((rated["rollouts"].to_numpy() >= fewest_rollouts(config.max_success_rate)).sum()),
        hard_problems=len(hard_draws),
        hard_successes=hard_successes,
        kept=len(drawn),
        truncated=truncated,
        duplicates=duplicates,
        over_cap=hard_successes - truncated - len(drawn) - duplicates,
        kept_problems=len({row.problem_id for row, _ in drawn}),
        kept_hard=sum(row.problem_id in hard_draws for row, _ in drawn),
    )


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


def _random_control(
    pool: RolloutPool, solved: Container[str], size: int, config: FilterConfig, key: bytes
) -> list[tuple[Success, int]]:
    """As many successes as the hard-problem filter keeps, drawn from those of all problems."""
    draw: SizedDraw[Success] = SizedDraw(size, config.max_per_problem, config.deduplicate, _order)
    for row in successes_of(pool, solved) if size else ():
        if row.finish_reason == "stop" or not config.finished_only:
            draw.offer(row.problem_id, success_digest(row, b"control " + key, config.deduplicate), row)
    return draw.sorted()


def _problem_draw(config: FilterConfig) -> ProblemDraw[Success]:
    return ProblemDraw(config.max_per_problem, config.deduplicate, _order)


def success_digest(row: Success, key: bytes, deduplicate: bool) -> int:
    """A row's rank in its problem's draw: pseudo-random, from the seed and the row's content."""
    # Without deduplication, copies would have equal ranks and be drawn together.
    unique = () if deduplicate else (f"{row.rollout_step} {row.reward!r}".encode() + row.sampling_logprobs,)
    return content_digest(key, row.problem_id, row.completion_ids, *unique)


def _order(row: Success) -> tuple[int, bytes, float]:
    """Sort key among copies: the smallest is kept."""
    return row.rollout_step, row.sampling_logprobs, row.reward
