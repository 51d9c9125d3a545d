"""Reward functions that tests name by their import path."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rloop_lightning.rewards.base import Reward
from rloop_lightning.types import CheckFault, Problem


def boxed(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
    """1 for a box whose content is short, so that the embedded policy both succeeds and fails."""
    return [float("boxed" in text and len(text) % 2 == 0) for text in completions]


def never(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
    return [0.0] * len(completions)


def always(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
    return [1.0] * len(completions)


def even(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
    """1 for a text of even length, of which any policy has some."""
    return [float(len(text) % 2 == 0) for text in completions]


def matches(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
    """1 for the gold answer, and a hundredth for each of its characters otherwise."""
    return [
        1.0 if text == problem.answer else len(text) / 100 for problem, text in zip(problems, completions, strict=True)
    ]


def below_zero(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
    """-1 for a short text, -2 for any other: where -1.5 and above is a success, none has a reward above 0."""
    return [-1.0 if len(text) % 2 == 0 else -2.0 for text in completions]


def nothing_is_right(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
    return [0.0] * len(completions)


def too_few(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
    return [1.0] * (len(completions) - 1)


def nothing(problems: Sequence[Problem], completions: Sequence[str]) -> None:
    return None


def words(problems: Sequence[Problem], completions: Sequence[str]) -> list[str]:
    return ["1.0"] * len(completions)


def not_a_number(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
    return [1.0, math.nan, *[0.0] * (len(completions) - 2)]


def raises(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
    return [float(completions[0].index("\0"))]


class Raises(Reward):
    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [math.sqrt(-1)]


class NoVerdict(Reward):
    """0 for all; the checks of texts with a minus sign time out."""

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [0.0] * len(texts)

    def check_faults(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[CheckFault]:
        return ["timeout" if "-" in text else "" for text in texts]


NOT_A_FUNCTION = 3
