"""What the hard-problem filter would select at several thresholds, without writing an expert set.

    for outcome in refilter(pool, config, [0.05, 0.1, 0.2], seed): outcome.rollouts

The threshold decides which problems are taken, and never which rollouts of a problem. So one draw from every problem
serves all thresholds, and the pool is read once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rloop_lightning.rollouts.draw import ProblemDraw
from rloop_lightning.rollouts.expert_draw import success_digest
from rloop_lightning.rollouts.filter import FilterConfig, is_hard
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.pool_scan import count_rollouts, successes_of


@dataclass(frozen=True)
class Outcome:
    """The expert set of a threshold.

    Args:
        max_success_rate: the threshold.
        rollouts: its rollouts.
        problems: their problems.
        success_rate: mean success rate of these problems; NaN without one.
        length: mean length of the rollouts, tokens; NaN without one.
        finished: share of the hard problems' successes that ended by themselves; NaN without one.
    """

    max_success_rate: float
    rollouts: int
    problems: int
    success_rate: float
    length: float
    finished: float


@dataclass(frozen=True)
class _Drawn:
    """What a problem gives."""

    lengths: tuple[int, ...]  # of the drawn rollouts, tokens
    successes: int
    finished: int


def refilter(
    pool: RolloutPool,
    config: FilterConfig,
    thresholds: Sequence[float],
    seed: int,
    *,
    earlier: Sequence[RolloutPool] = (),
) -> list[Outcome]:
    """The expert set that `build_expert_set` would write, for each threshold.

    Memory grows with the number of solved problems times `config.max_per_problem`, or with the successes if that is 0.

    Args:
        pool: every rollout of a round's exploration.
        config: the filter; its own threshold is not used.
        thresholds: values of `max_success_rate`.
        seed: of the draw.
        earlier: the pools of earlier rounds, for `config.rate_over` run.
    """
    rated = count_rollouts(*(earlier if config.rate_over == "run" else ()), pool)
    drawn = _drawn(pool, config, seed)
    names = rated["problem_id"].to_pylist()
    rates = rated["successes"].to_numpy() / rated["rollouts"].to_numpy()
    outcomes = []
    for threshold in thresholds:
        hard = is_hard(rated, replace(config, max_success_rate=threshold))
        taken = [(drawn[names[place]], rates[place]) for place in np.flatnonzero(hard) if names[place] in drawn]
        lengths = [length for problem, _ in taken for length in problem.lengths]
        outcomes.append(
            Outcome(
                max_success_rate=threshold,
                rollouts=len(lengths),
                problems=sum(bool(problem.lengths) for problem, _ in taken),
                success_rate=_mean([rate for problem, rate in taken if problem.lengths]),
                length=_mean(lengths),
                finished=_share(
                    sum(problem.finished for problem, _ in taken), sum(problem.successes for problem, _ in taken)
                ),
            )
        )
    return outcomes


class _All:
    """Contains every problem."""

    def __contains__(self, name: object) -> bool:
        return True


def _drawn(pool: RolloutPool, config: FilterConfig, seed: int) -> dict[str, _Drawn]:
    draws: dict[str, ProblemDraw[int]] = defaultdict(
        lambda: ProblemDraw(config.max_per_problem, config.deduplicate, lambda length: length)
    )
    successes: dict[str, int] = defaultdict(int)
    finished: dict[str, int] = defaultdict(int)
    for row in successes_of(pool, _All()):
        successes[row.problem_id] += 1
        finished[row.problem_id] += row.finish_reason == "stop"
        if row.finish_reason == "stop" or not config.finished_only:
            length = len(row.completion_ids) // np.dtype(np.int32).itemsize
            draws[row.problem_id].offer(success_digest(row, str(seed).encode(), config.deduplicate), length)
    return {
        name: _Drawn(
            tuple(length for length, _ in draws[name].sorted()) if name in draws else (), count, finished[name]
        )
        for name, count in successes.items()
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
