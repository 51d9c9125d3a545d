"""Compares numbers. Two exact numbers are equal if they are identical; a decimal has the precision it is written with.

- An integer is never approximated: 1000000 is not 1.0e6 + 0.4.
- Two decimals are equal if their values are, `0.50` and `.5`.
- A decimal stands for a number that is no integer, such as 1/3 or pi, if it has six significant digits or more, is less
  than one unit of its last digit away, and differs by at most 5e-6 of that number.
- A decimal of 15 or more significant digits is what a computer printed. It equals a shorter decimal or an integer if
  they differ by at most 2^-24 of it, as single precision rounds, and one of as many digits if they differ by 2^-50.
"""

from __future__ import annotations

from fractions import Fraction

from rloop_lightning.rewards.tokens import Number

SIGNIFICANT_DIGITS = 6
RELATIVE_TOLERANCE = Fraction(5, 10**6)
_PRINTED_DIGITS = 15
_SINGLE, _DOUBLE = Fraction(1, 2**24), Fraction(1, 2**50)


def equal_numbers(first: Fraction, one: Number | None, second: Fraction, other: Number | None) -> bool:
    """Whether two values are equal, given the literals that they were written as, if they were."""
    if first == second:
        return True
    if not ((one and one.decimal) or (other and other.decimal)):
        return False
    if one and other and (one.decimal or _whole(first)) and (other.decimal or _whole(second)):
        return _printed_alike(first, one, second, other)
    if one and one.decimal and other and other.decimal:
        return False
    decimal, value, exact = (one, first, second) if one and one.decimal else (other, second, first)
    if decimal is None or exact == 0:
        return False
    difference = abs(value - exact)
    if decimal.digits >= _PRINTED_DIGITS and difference <= _DOUBLE * abs(exact):
        return True
    if _whole(exact) or decimal.digits < SIGNIFICANT_DIGITS:
        return False
    return difference < decimal.unit and difference <= RELATIVE_TOLERANCE * abs(exact)


def _whole(value: Fraction) -> bool:
    return value.denominator == 1


def _printed_alike(first: Fraction, one: Number, second: Fraction, other: Number) -> bool:
    """Whether two literals, one of them a decimal, are one number as a computer prints it."""
    if _is_double(first) and _is_double(second) and float(first) == float(second):
        return max(one.digits, other.digits) > _PRINTED_DIGITS
    shorter, longer = sorted((one, other), key=lambda literal: literal.digits)
    if longer.digits < _PRINTED_DIGITS or not longer.decimal:
        return False
    tolerance = _DOUBLE if shorter.digits >= _PRINTED_DIGITS or _whole(shorter.value) else _SINGLE
    return abs(first - second) <= tolerance * max(abs(first), abs(second))


def _is_double(value: Fraction) -> bool:
    return abs(value) < Fraction(10) ** 300 and _whole(value) and abs(value) > 2**53
