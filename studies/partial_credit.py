"""A reward of countdown problems that pays for a wrong value too, the more the closer it is to the target.

--reward studies.partial_credit.closeness
"""

from __future__ import annotations

from rloop_lightning.rewards.countdown import CountdownReward, boxed_expression, exact_value
from rloop_lightning.types import Problem

_HALF = 10  # a value this far from the target gets half of what a value next to it gets


def closeness(problems: list[Problem], completions: list[str]) -> list[float]:
    """1 for a solution; below 0.5 for another value of an expression that uses each number once; else 0."""
    solved = CountdownReward().rewards(problems, completions)
    pairs = zip(solved, problems, completions, strict=True)
    return [right or _partial(problem, text) for right, problem, text in pairs]


def _partial(problem: Problem, text: str) -> float:
    expression = boxed_expression(problem, text)
    value = None if expression is None else exact_value(expression)
    return 0.0 if value is None else 0.5 * 0.5 ** float(abs(value - int(problem.answer)) / _HALF)
