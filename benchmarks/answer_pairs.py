r"""Pairs of a gold answer and an answer, equal or a near miss, by kind. `answer_agreement.py` judges them.

Each kind makes, from a seeded random generator, a gold answer, another spelling of it, and a near miss: one digit,
sign, unit, index, bound or letter is different. Beside each text stands its value: a sympy expression, or a tuple of
such values and of words. The values come from the generator, not from a parser, so they are an independent truth.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.pairs_of_expressions import EXPRESSIONS
from benchmarks.pairs_of_numbers import NUMBERS
from benchmarks.pairs_of_structures import STRUCTURES
from benchmarks.pairs_of_words import WORDS

KINDS = NUMBERS | EXPRESSIONS | STRUCTURES | WORDS


@dataclass(frozen=True)
class Pair:
    """A gold answer and an answer.

    Args:
        kind: name of the generator.
        gold: text of the gold answer.
        answer: text of the answer.
        equal: whether they are equal.
        values: the values of both.
    """

    kind: str
    gold: str
    answer: str
    equal: bool
    values: tuple[Any, Any]


def pairs(count: int, seed: int = 0) -> Iterator[Pair]:
    """`count` equal pairs and as many near misses, of all kinds in turn."""
    rng = random.Random(seed)
    kinds = list(KINDS.items())
    for i in range(count):
        kind, make = kinds[i % len(kinds)]
        gold, value, spelled, miss, missed = make(rng)
        yield Pair(kind, gold, spelled, True, (value, value))
        yield Pair(kind, gold, miss, False, (value, missed))
