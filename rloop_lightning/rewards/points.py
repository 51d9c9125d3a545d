"""The points at which expressions are compared: random numbers, and integers where only those have a real value."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]  # sympy ships no types

DIGITS = 130
# Sizes of the variables at each point: |x - 100| has two branches, and arcsin ends at 1. At the first points all
# variables are positive, as in roots and logarithms; at the other eight, they have signs.
_SIZES = ((0.3, 1), (0.3, 1), (1, 3), (3, 20), (20, 100), (100, 200), (1000, 3000))
_SIGNED_SIZES = ((1, 3), (0.3, 1), (0.3, 1), (20, 200), (0.3, 1), (20, 200), (3, 20), (20, 200))
# Integers are smaller, as their powers have to be told apart; the last points are for branches such as |n - 2024|.
_INTEGERS = ((1, 4), (5, 12), (1, 4), (2, 20), (5, 30), (102, 200), (2026, 3000))
_SIGNED_INTEGERS = ((1, 4), (3, 12), (1, 4), (5, 30), (2, 12), (5, 30), (102, 200), (5, 30))
_LARGEST_EXPONENT = 1e9


def points(expressions: Sequence[Any]) -> list[dict[Any, Any]]:
    """The values of the variables at every point; no points if the expressions are too large for all of them."""
    symbols = sorted(set().union(*(e.free_symbols for e in expressions)), key=str)
    if not symbols:
        return [{}]
    whole = set().union(*map(_whole, expressions))
    columns = [integers(i) if symbol in whole else coordinates(i) for i, symbol in enumerate(symbols)]
    found = [dict(zip(symbols, values, strict=True)) for values in zip(*columns, strict=True)]
    if whole:
        found = [point for point in found if not _is_tower(expressions, point)]
    # A sum without a closed form takes seconds at a negative point, and Math-Verify decides about it anyway.
    return found[:2] if any(e.has(sympy.Sum, sympy.Product) for e in expressions) else found


def _whole(expression: Any) -> set[Any]:
    """The variables in exponents of negative numbers: (-3)^n is a sequence, and complex between the integers."""
    powers = [power for power in expression.atoms(sympy.Pow) if not power.base.free_symbols and power.base.is_negative]
    return set().union(*(power.exp.free_symbols for power in powers))


def _is_tower(expressions: Sequence[Any], point: dict[Any, Any]) -> bool:
    """Whether an exponent is so large that a power, which is exact for an integer, takes minutes."""
    exponents = {power.exp for e in expressions for power in e.atoms(sympy.Pow)}
    inner_first = sorted(exponents, key=lambda exponent: int(exponent.count_ops()))
    return any(abs(at(exponent, point, 15)) > _LARGEST_EXPONENT for exponent in inner_first)


@lru_cache(maxsize=256)
def coordinates(variable: int) -> tuple[Any, ...]:
    """The values of a variable, given by its number, at all points. Every two of seven variables have all signs."""
    generator = random.Random(variable)
    sizes = [generator.uniform(*limits) for limits in (*_SIZES, *_SIGNED_SIZES)]
    return tuple(sympy.Float(sign * size, DIGITS) for sign, size in zip(_signs(variable), sizes, strict=True))


@lru_cache(maxsize=256)
def integers(variable: int) -> tuple[Any, ...]:
    """The same for a variable that is an integer. Every two of seven are even and odd in all ways."""
    generator = random.Random(variable)
    sizes = [generator.randint(*limits) for limits in (*_INTEGERS, *_SIGNED_INTEGERS)]
    column = variable % 7 + 1
    odd = [(row & column).bit_count() % 2 for row in range(len(sizes))]
    values = [size + (size + parity) % 2 for size, parity in zip(sizes, odd, strict=True)]
    return tuple(sympy.Float(sign * value, DIGITS) for sign, value in zip(_signs(variable), values, strict=True))


def _signs(variable: int) -> list[int]:
    column = variable % 7 + 1
    return [1] * len(_SIZES) + [(-1) ** (row & column).bit_count() for row in range(len(_SIGNED_SIZES))]


def at(expression: Any, point: dict[Any, Any], digits: int = DIGITS) -> Any:
    """The expression's value at a point, a sympy number; NaN if it can't be evaluated."""
    try:
        return expression.xreplace(point).evalf(digits)
    except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError):
        return sympy.nan
