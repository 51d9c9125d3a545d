"""The reach of the hard-problem filter: which problems can be hard at all, given how often they are sampled.

With n rollouts, the lowest success rate above 0 is 1/n. A problem is within reach of the filter if 1/n is below
`--filter.max_success_rate`; with fewer rollouts, every problem that is ever solved counts as too easy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


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
        """Mean number of groups per problem."""
        return self.rounds * self.groups / self.problems

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
