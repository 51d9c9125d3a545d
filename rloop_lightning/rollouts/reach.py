"""The reach of the hard-problem filter: which problems can be hard at all, given how often they are sampled.

With n rollouts, the lowest success rate above 0 is 1/n. A problem is within reach of the filter if 1/n is below
`--filter.max_success_rate`; with fewer rollouts, every problem that is ever solved counts as too easy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from rloop_lightning.types import Group


def fewest_rollouts(max_success_rate: float) -> int:
    """The smallest number of rollouts n with 1/n below a success rate."""
    n = max(1, math.floor(1 / max_success_rate) - 1)
    while not 1 / n < max_success_rate:
        n += 1
    return n


@dataclass(frozen=True)
class Reach:
    """The rollouts that each problem gets before the filter reads the pool.

    Dynamic sampling draws more groups than are trained on. How many is known only in the run, so they don't count here.

    Args:
        problems: problems in the training set.
        groups: groups that an exploration trains on, drawn in passes over the training set.
        rollouts_per_problem: rollouts per group.
        max_success_rate: the filter's threshold.
        extra_rollouts: further rollouts of every problem in an exploration, from extra captures.
        rounds: explorations whose rollouts count.
    """

    problems: int
    groups: int
    rollouts_per_problem: int
    max_success_rate: float
    extra_rollouts: int = 0
    rounds: int = 1

    @property
    def visits(self) -> float:
        """Mean number of groups per problem in an exploration."""
        return self.groups / self.problems

    @property
    def most_rollouts(self) -> int:
        """Rollouts of the problems that are sampled most."""
        return self._rollouts(math.ceil(self.groups / self.problems))

    @property
    def within(self) -> int:
        """Problems within reach of the filter."""
        needed = fewest_rollouts(self.max_success_rate)
        passes, rest = divmod(self.groups, self.problems)
        if self._rollouts(passes) >= needed:
            return self.problems
        return rest if self._rollouts(passes + 1) >= needed else 0

    def remedies(self) -> list[str]:
        """Settings that bring problems within reach, each sufficient on its own."""
        needed = fewest_rollouts(self.max_success_rate)
        visits = self.rounds * math.ceil(self.groups / self.problems)
        rollouts = math.ceil((needed - self.rounds * self.extra_rollouts) / visits)
        rounds = math.ceil(needed / (self.most_rollouts / self.rounds))
        passes = math.ceil(needed / self.rollouts_per_problem)
        return [
            f"--loop.rollouts_per_problem {rollouts}",
            f"at most {self.groups // passes:,} problems" if passes <= self.groups else "fewer problems",
            f"--loop.problems_per_step or --loop.explore_steps {passes * self.problems / self.groups:.2g} times as "
            "large",
            f"--filter.max_success_rate {_rounded_up(1 / self.most_rollouts):g}",
            f"--filter.rate_over run with --loop.rounds {rounds}",
        ]

    def over(self, rounds: int) -> Reach:
        """The reach if the rollouts of so many rounds count."""
        return replace(self, rounds=rounds)

    def _rollouts(self, visits: int) -> int:
        return self.rounds * (visits * self.rollouts_per_problem + self.extra_rollouts)


def _rounded_up(rate: float) -> float:
    """The next whole percentage above a rate."""
    return min(1.0, (math.floor(rate * 100) + 1) / 100)


class Tally:
    """Counts a round's problems within reach of the filter, and the hard ones among them, while its pool grows.

    Args:
        max_success_rate: the filter's threshold.
        counts: the rollouts and successes of the round so far, from `count_rollouts`.
        earlier: those of earlier rounds, which count for the rates of the round's problems.
    """

    def __init__(self, max_success_rate: float, counts: pa.Table, earlier: pa.Table | None = None) -> None:
        self.max_success_rate = max_success_rate
        self._needed = fewest_rollouts(max_success_rate)
        self._earlier = {} if earlier is None else _by_problem(earlier)
        self._counts: dict[str, _Count] = {}
        self.solved = self.within_reach = self.hard = 0
        for problem_id, count in _by_problem(counts).items():
            self._add(problem_id, count)

    def add(self, groups: Sequence[Group]) -> None:
        """Count the rollouts of further groups. The cost depends on the groups only."""
        for group in groups:
            self._add(group.problem.id, (len(group.rollouts), group.success_count))

    def _add(self, problem_id: str, count: _Count) -> None:
        before = self._counts.get(problem_id, (0, 0))
        after = self._counts[problem_id] = _sum(before, count)
        earlier = self._earlier.get(problem_id, (0, 0))
        for state, sign in ((before, -1), (after, 1)):
            rollouts, successes = _sum(state, earlier)
            solved = state[1] > 0
            self.solved += sign * solved
            self.within_reach += sign * (state[0] > 0 and rollouts >= self._needed)
            self.hard += sign * (solved and successes / rollouts < self.max_success_rate)

    def metrics(self) -> dict[str, float]:
        """The counts under their metric names."""
        return {
            "pool/problems_solved": float(self.solved),
            "pool/problems_within_reach": float(self.within_reach),
            "pool/hard_problems": float(self.hard),
        }


_Count = tuple[int, int]
"""Rollouts and successes."""


def _by_problem(counts: pa.Table) -> dict[str, _Count]:
    names, rollouts, successes = (counts[name].to_pylist() for name in ("problem_id", "rollouts", "successes"))
    return dict(zip(names, zip(rollouts, successes, strict=True), strict=True))


def _sum(one: _Count, other: _Count) -> _Count:
    return one[0] + other[0], one[1] + other[1]
