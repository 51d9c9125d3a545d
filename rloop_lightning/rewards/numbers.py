"""Compares numbers. Two exact numbers are equal if they are identical; a decimal has the precision it is written with.

- An integer is never approximated: 1000000 is not 1.0e6 + 0.4.
- Two decimals are equal if their values are, `0.50` and `.5`.
- A decimal stands for a number that is no integer, such as 1/3 or pi, if it has six significant digits or more, is that
  number rounded or cut off, and differs from it by at most 5e-6 of it.
- A decimal of 15 or more significant digits is what a computer printed. It equals a shorter decimal or an integer if
  they differ by at most 2^-24 of it, as single precision rounds, and one of as many digits if they differ by 2^-50.
- An integer that is exactly a double, such as 24999999999999997902848, equals the decimal that prints it, 2.5e22.
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
    cut_off = abs(value) < abs(exact) and difference < decimal.unit
    return (cut_off or difference <= decimal.unit / 2) and difference <= RELATIVE_TOLERANCE * abs(exact)


def _whole(value: Fraction) -> bool:
    return value.denominator == 1


def _printed_alike(first: Fraction, one: Number, second: Fraction, other: Number) -> bool:
    """Whether two literals, one of them a decimal, are one number as a computer prints it."""
    shorter, longer = sorted((one, other), key=lambda literal: literal.digits)
    if longer.digits < _PRINTED_DIGITS:
        return False
    if not longer.decimal:
        return shorter.decimal and _is_double(longer.value) and float(longer.value) == float(shorter.value)
    tolerance = _DOUBLE if shorter.digits >= _PRINTED_DIGITS or _whole(shorter.value) else _SINGLE
    return abs(first - second) <= tolerance * max(abs(first), abs(second))


def _is_double(value: Fraction) -> bool:
    """Whether an integer is exactly a number in double precision, beyond those that have every integer."""
    return 2**53 < abs(value) < 10**300 and Fraction(float(value)) == value
