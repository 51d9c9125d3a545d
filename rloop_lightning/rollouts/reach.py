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
    """Counts the problems within reach of the filter, and the hard ones among them, while the pool grows.

    Args:
        max_success_rate: the filter's threshold.
        counts: the rollouts and successes so far, from `count_rollouts`.
    """

    def __init__(self, max_success_rate: float, counts: pa.Table) -> None:
        self.max_success_rate = max_success_rate
        self._needed = fewest_rollouts(max_success_rate)
        names, rollouts, successes = (counts[name].to_pylist() for name in ("problem_id", "rollouts", "successes"))
        self._counts = dict(zip(names, zip(rollouts, successes, strict=True), strict=True))
        self.solved = sum(successes > 0 for _, successes in self._counts.values())
        self.within_reach = sum(rollouts >= self._needed for rollouts, _ in self._counts.values())
        self.hard = sum(self._is_hard(*count) for count in self._counts.values())

    def add(self, groups: Sequence[Group]) -> None:
        """Count the rollouts of further groups. The cost depends on the groups only."""
        for group in groups:
            before = self._counts.get(group.problem.id, (0, 0))
            after = before[0] + len(group.rollouts), before[1] + group.success_count
            self._counts[group.problem.id] = after
            self.solved += (after[1] > 0) - (before[1] > 0)
            self.within_reach += (after[0] >= self._needed) - (before[0] >= self._needed)
            self.hard += self._is_hard(*after) - self._is_hard(*before)

    def metrics(self) -> dict[str, float]:
        """The counts under their metric names."""
        return {
            "pool/problems_solved": float(self.solved),
            "pool/problems_within_reach": float(self.within_reach),
            "pool/hard_problems": float(self.hard),
        }

    def _is_hard(self, rollouts: int, successes: int) -> bool:
        return successes > 0 and successes / rollouts < self.max_success_rate
