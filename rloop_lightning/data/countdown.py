"""Countdown: make a target from a few numbers, each used exactly once. The embedded default problem family.

    prompt      3 7 12=33:
    completion  7*3=21;21+12=33;\\boxed{7*3+12}

`Countdown` generates the sets. `draw_solution` draws a problem together with a derivation. This guarantees that every
target is reachable, and the built-in policy is fine-tuned on these derivations.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rloop_lightning.data.base import ProblemSource
from rloop_lightning.system.fields import PositiveInt, check_fields
from rloop_lightning.types import Problem

if TYPE_CHECKING:
    Count = int
    LargestNumber = int
    LargestTarget = int
else:
    from jsonargparse.typing import restricted_number_type

    def _range(name: str, least: int, most: int) -> type:
        limits = [(">=", least), ("<=", most)]
        return restricted_number_type(name, int, limits, docstring=f"int restricted to be ≥{least} and ≤{most}")

    Count = _range("Count", 2, 6)
    LargestNumber = _range("LargestNumber", 2, 100)
    LargestTarget = _range("LargestTarget", 2, 1000)

# A hash of the canonical form decides which set a problem belongs to, in every run. Sets are therefore disjoint for any
# sizes, seeds and ranges, and the built-in policy, fine-tuned on `policy`, has seen none of the other sets.
_SHARES = ("train",) * 4 + ("validation",) * 2 + ("test",) * 2 + ("ood",) * 2 + ("policy",) * 6
_MOST_MISSES = 20_000  # consecutive draws without a new problem: the family is exhausted
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True)
class Family:
    """The distribution of problems.

    Args:
        counts: possible numbers of numbers in a problem, equally likely.
        max_number: numbers are 1 to this.
        max_target: targets are 1 to this.
    """

    counts: tuple[int, ...]
    max_number: int
    max_target: int


@dataclass(frozen=True)
class Solution:
    """A problem and one derivation of its target.

    Args:
        numbers: sorted; numbers and target are the canonical form of the problem.
        target: the value of `expression`.
        steps: one operation each, such as `7*3=21`; every result is a positive integer.
        expression: the derivation as one expression, without redundant parentheses.
    """

    numbers: tuple[int, ...]
    target: int
    steps: tuple[str, ...]
    expression: str

    @property
    def problem(self) -> Problem:
        numbers = " ".join(map(str, self.numbers))
        return Problem(
            id="-".join(("countdown", *map(str, (*self.numbers, self.target)))),
            prompt=f"{numbers}={self.target}:",
            answer=str(self.target),
            metadata={"numbers": self.numbers, "expression": self.expression},
        )

    @property
    def text(self) -> str:
        """The completion."""
        return ";".join((*self.steps, rf"\boxed{{{self.expression}}}"))


def set_of(numbers: Sequence[int], target: int) -> str:
    """Which set the problem belongs to: `train`, `validation`, `test`, `ood` or, for the built-in policy, `policy`."""
    canonical = " ".join(map(str, (*sorted(numbers), target))).encode()
    return _SHARES[hashlib.blake2b(canonical, digest_size=4).digest()[0] % len(_SHARES)]


def _join(left: tuple[str, int], operator: str, right: tuple[str, int]) -> tuple[str, int]:
    """Join two (expression, precedence) pairs, with parentheses only where the value needs them."""
    precedence = _PRECEDENCE[operator]
    first = left[0] if left[1] >= precedence else f"({left[0]})"
    bare = right[1] > precedence or (right[1] == precedence and operator in "+*")
    second = right[0] if bare else f"({right[0]})"
    return f"{first}{operator}{second}", precedence


def draw_solution(rng: random.Random, family: Family) -> Solution | None:
    """A random problem with the derivation that it was built from, or None if its target exceeds the limit.

    Two random values are joined by a random operation until one value is left. Every intermediate result is a positive
    integer: no difference below 1, no division with a remainder.
    """
    numbers = tuple(sorted(rng.randint(1, family.max_number) for _ in range(rng.choice(family.counts))))
    values: list[tuple[int, tuple[str, int]]] = [(number, (str(number), 3)) for number in numbers]
    steps = []
    while len(values) > 1:
        a, x = values.pop(rng.randrange(len(values)))
        b, y = values.pop(rng.randrange(len(values)))
        operators = "+*" + "-" * (a > b) + "/" * (a % b == 0)
        operator = rng.choice(operators)
        result = a + b if operator == "+" else a * b if operator == "*" else a - b if operator == "-" else a // b
        steps.append(f"{a}{operator}{b}={result}")
        values.append((result, _join(x, operator, y)))
    target, (expression, _) = values[0]
    return Solution(numbers, target, tuple(steps), expression) if target <= family.max_target else None


class Countdown(ProblemSource):
    """Write an expression that uses each of the given numbers once and equals the target.

    The sets are `train`; `validation` and `test` from the same distribution; `ood` with more and larger numbers. They
    are disjoint in every run, and no set depends on another's size.

    Args:
        train_size: problems in the training set.
        validation_size: problems in `validation`.
        test_size: problems in `test`.
        ood_size: problems in `ood`.
        seed: the same seed gives the same sets, in every run.
        counts: possible numbers of numbers in a problem, equally likely.
        max_number: numbers are 1 to this.
        max_target: targets are 1 to this.
        ood_counts: `counts` of the set `ood`.
        ood_max_number: `max_number` of the set `ood`.
        ood_max_target: `max_target` of the set `ood`.
    """

    reward = "countdown"  # checks the value of the box, and the rule on numbers

    def __init__(
        self,
        *,
        train_size: PositiveInt = 600,
        validation_size: PositiveInt = 64,
        test_size: PositiveInt = 128,
        ood_size: PositiveInt = 128,
        seed: int = 0,
        counts: tuple[Count, ...] = (3, 4),
        max_number: LargestNumber = 12,
        max_target: LargestTarget = 100,
        ood_counts: tuple[Count, ...] = (5,),
        ood_max_number: LargestNumber = 20,
        ood_max_target: LargestTarget = 200,
    ) -> None:
        self.train_size, self.validation_size, self.test_size, self.ood_size = (
            train_size,
            validation_size,
            test_size,
            ood_size,
        )
        self.seed = seed
        self.counts, self.max_number, self.max_target = tuple(counts), max_number, max_target
        self.ood_counts, self.ood_max_number, self.ood_max_target = tuple(ood_counts), ood_max_number, ood_max_target
        check_fields(self, "--data")
        for name in ("counts", "ood_counts"):
            if not getattr(self, name):
                raise ValueError(f"--data.{name} must hold at least one count")

    def train(self) -> Sequence[Problem]:
        return self._train

    def evaluation(self) -> Mapping[str, Sequence[Problem]]:
        return self._evaluation

    @cached_property
    def _train(self) -> tuple[Problem, ...]:
        return self._draw("train", self.train_size, self.family)

    @cached_property
    def _evaluation(self) -> Mapping[str, tuple[Problem, ...]]:
        ood = Family(self.ood_counts, self.ood_max_number, self.ood_max_target)
        return {
            "validation": self._draw("validation", self.validation_size, self.family),
            "test": self._draw("test", self.test_size, self.family),
            "ood": self._draw("ood", self.ood_size, ood),
        }

    @property
    def family(self) -> Family:
        """Of every set but `ood`."""
        return Family(self.counts, self.max_number, self.max_target)

    def _draw(self, name: str, size: int, family: Family) -> tuple[Problem, ...]:
        """The first problems of the set's own stream. A larger set therefore begins with the smaller one."""
        rng = random.Random(f"countdown {name} {self.seed}")
        found: dict[str, Problem] = {}
        misses = 0
        while len(found) < size:
            solution = draw_solution(rng, family)
            problem = solution.problem if solution and set_of(solution.numbers, solution.target) == name else None
            if problem and problem.id not in found:  # its first derivation stays, whatever the size
                found[problem.id] = problem
                misses = 0
            else:
                misses += 1
            if misses > _MOST_MISSES:
                raise ValueError(
                    f"--data.{name}_size is {size}, but only about {len(found)} problems exist for it in {family}: "
                    "lower it, or allow more or larger numbers"
                )
        return tuple(found.values())
