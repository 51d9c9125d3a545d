"""What the generators of answer pairs share: how a number is changed a little."""

from __future__ import annotations

import random
from typing import Any

Made = tuple[str, Any, str, str, Any]  # gold, its value, another spelling, a near miss, the near miss's value


def digit_changed(rng: random.Random, number: int) -> int:
    """The number with one of its digits changed."""
    digits = list(str(abs(number)))
    at = rng.randrange(len(digits))
    choices = [d for d in "0123456789" if d != digits[at] and (at > 0 or d != "0" or len(digits) == 1)]
    digits[at] = rng.choice(choices)
    return int("".join(digits)) * (-1 if number < 0 else 1)


def changed(rng: random.Random, number: int) -> int:
    """The number with a digit changed or with the other sign."""
    return -number if number and rng.random() < 0.3 else digit_changed(rng, number)


def some(rng: random.Random, high: int = 20) -> int:
    return rng.choice((-1, 1)) * rng.randint(1, high)
