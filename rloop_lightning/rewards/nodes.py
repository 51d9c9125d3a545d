r"""Expressions in canonical LaTeX, built from the leaves up, with the exact value of each rational one.

Every node's LaTeX is written out in full: `\cdot` for every product, brackets for every precedence, a fraction for
every decimal, and `x_{120}` for the variable `x` (the number encodes the name). latex2sympy does not
guess at such text.
Rational arithmetic is done here, with limits that are checked before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from rloop_lightning.rewards.tokens import Number, UnreadableError

MAX_BITS = 150_000  # of an exact number
MAX_FACTORIAL = 5_000
MAX_HEIGHT = 8  # the time to evaluate nested roots grows exponentially
CONSTANTS = ("e", r"\pi", "i")
SUM, PRODUCT, POWER, ATOM = range(4)


@dataclass(frozen=True)
class Node:
    """An expression.

    Args:
        latex: the expression in canonical LaTeX.
        level: how tightly it binds: SUM, PRODUCT, POWER or ATOM.
        value: its exact value, if it is rational.
        literal: the literal, if it is one, with or without a minus sign.
        matrix: its entries, if it is a matrix that is written out.
        names: the variables in it.
        height: how deeply roots, powers and functions are nested in it.
    """

    latex: str
    level: int = ATOM
    value: Fraction | None = None
    literal: Number | None = None
    matrix: tuple[tuple[Node, ...], ...] | None = None
    names: frozenset[str] = frozenset()
    height: int = 0

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix, or a product of matrices, which is not multiplied out."""
        return "{pmatrix}" in self.latex

    def at(self, level: int) -> str:
        """The LaTeX of this node as an operand of an operator that binds at `level`."""
        return self.latex if self.level >= level else f"({self.latex})"


def rational(value: Fraction, literal: Number | None = None) -> Node:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise UnreadableError("a number that is too large")
    level = ATOM if value >= 0 and value.denominator == 1 else PRODUCT if value >= 0 else SUM
    return Node(_rational_latex(value), level, value, literal)


def _rational_latex(value: Fraction) -> str:
    top, below = _digits(abs(value.numerator)), _digits(value.denominator)
    return ("-" if value < 0 else "") + (top if value.denominator == 1 else rf"\frac{{{top}}}{{{below}}}")


def _digits(number: int) -> str:
    if number.bit_length() <= 10_000:  # str() refuses numbers of more than 4,300 digits
        return str(number)
    half = int(number.bit_length() * 0.1505)
    high, low = divmod(number, 10**half)
    return _digits(high) + _digits(low).zfill(half)


def name(text: str) -> Node:
    if text in CONSTANTS:
        return Node({"i": "i", "e": "e"}.get(text, r"\pi "))
    return Node(f"x_{{{int.from_bytes(text.encode(), 'big')}}}", names=frozenset({text}))


def built(latex: str, level: int, *operands: Node, nested: bool = False) -> Node:
    """An expression of `operands`; with `nested`, one in which they stand in a root, a power or a function."""
    height = max(node.height for node in operands) + nested
    if height > MAX_HEIGHT:
        raise UnreadableError(f"more than {MAX_HEIGHT} nested roots, powers and functions")
    return Node(latex, level, names=frozenset().union(*(node.names for node in operands)), height=height)


def negative(node: Node) -> Node:
    if node.value is not None:
        return rational(-node.value, _negative_literal(node.literal))
    if node.matrix is not None:
        return matrix([[negative(entry) for entry in row] for row in node.matrix])
    return built(f"-{node.at(PRODUCT)}", SUM, node)


def _negative_literal(literal: Number | None) -> Number | None:
    return literal and Number(-literal.value, literal.decimal, literal.digits, literal.unit)


def add(first: Node, second: Node, sign: str) -> Node:
    if first.value is not None and second.value is not None:
        return rational(first.value + second.value if sign == "+" else first.value - second.value)
    if first.matrix is not None and second.matrix is not None and shape(first) == shape(second):
        rows = [zip(one, other, strict=True) for one, other in zip(first.matrix, second.matrix, strict=True)]
        return matrix([[add(one, other, sign) for one, other in row] for row in rows])
    return built(f"{first.latex}{sign}{second.at(PRODUCT)}", SUM, first, second)


def multiply(first: Node, second: Node) -> Node:
    if first.value is not None and second.value is not None:
        return rational(first.value * second.value, _scientific(first.literal, second.value))
    for factor, entries in ((first, second.matrix), (second, first.matrix)):
        if entries is not None and not factor.is_matrix:
            return matrix([[multiply(factor, entry) for entry in row] for row in entries])
    return built(rf"{first.at(PRODUCT)}\cdot {second.at(POWER)}", PRODUCT, first, second)


def _scientific(literal: Number | None, factor: Fraction) -> Number | None:
    """The literal `1.5` times a power of ten, which is a literal too."""
    top, below = abs(factor.numerator), factor.denominator
    if literal is None or not literal.decimal or top.bit_length() + below.bit_length() > 4_000:
        return None
    if min(top, below) != 1 or set(str(max(top, below))[1:]) - {"0"} or str(max(top, below))[0] != "1":
        return None
    return Number(literal.value * factor, True, literal.digits, literal.unit * abs(factor))


def divide(first: Node, second: Node) -> Node:
    if second.value == 0:
        raise UnreadableError("a division by zero")
    if first.value is not None and second.value is not None:
        return rational(first.value / second.value)
    if second.is_matrix:
        raise UnreadableError("a division by a matrix")
    if first.matrix is not None:
        return matrix([[divide(entry, second) for entry in row] for row in first.matrix])
    return built(rf"\frac{{{first.latex}}}{{{second.latex}}}", PRODUCT, first, second)


def matrix(rows: Sequence[Sequence[Node]]) -> Node:
    """A matrix by its entries."""
    if any(entry.is_matrix for row in rows for entry in row):
        raise UnreadableError("a matrix in a matrix")
    latex = r"\\".join("&".join(node.latex for node in row) for row in rows)
    node = built(rf"\begin{{pmatrix}}{latex}\end{{pmatrix}}", ATOM, *(entry for row in rows for entry in row))
    return replace(node, matrix=tuple(map(tuple, rows)))


def shape(node: Node) -> tuple[int, int]:
    """The numbers of rows and columns of a matrix that is written out; zeros for anything else."""
    return (len(node.matrix), len(node.matrix[0])) if node.matrix else (0, 0)


def power(base: Node, exponent: Node) -> Node:
    whole = exponent.value is not None and exponent.value.denominator == 1
    if base.value is not None and whole and exponent.value is not None:
        times = exponent.value.numerator
        bits = max(abs(base.value.numerator).bit_length(), base.value.denominator.bit_length())
        if base.value == 0 and times <= 0:
            raise UnreadableError("a power of zero")
        if abs(base.value) != 1 and bits * abs(times) > MAX_BITS:
            raise UnreadableError("a power that is too large")
        return rational(base.value ** (times % 2 if abs(base.value) == 1 else times))
    if base.matrix is not None and (exponent.value is None or abs(exponent.value) > 10):
        raise UnreadableError("a power of a matrix")
    if (exponent.value is not None and abs(exponent.value) > 10_000) or (base.value is not None and _large(base.value)):
        raise UnreadableError("a power that is too large")
    return built(f"{base.at(ATOM)}^{{{exponent.latex}}}", POWER, base, exponent, nested=True)


def _large(value: Fraction) -> bool:
    return max(value.numerator.bit_length(), value.denominator.bit_length()) > 400


def factorial(node: Node, step: int = 1) -> Node:
    if node.value is not None:
        if node.value.denominator != 1 or not 0 <= node.value <= MAX_FACTORIAL:
            raise UnreadableError("a factorial that is too large")
        return rational(Fraction(math.prod(range(node.value.numerator, 0, -step))))
    if step != 1 or not node.names:
        raise UnreadableError("a factorial")
    return built(f"({node.latex})!", POWER, node, nested=True)  # ((n)!)^2 has its brackets


def binomial(top: Node, below: Node, arranged: bool = False) -> Node:
    """The number of combinations, or of arrangements."""
    if top.value is not None and below.value is not None:
        n, k = top.value, below.value
        if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 20_000:
            raise UnreadableError("a binomial coefficient that is too large")
        return rational(Fraction((math.perm if arranged else math.comb)(n.numerator, k.numerator)))
    if arranged or not (top.names | below.names):
        raise UnreadableError("a number of arrangements")
    return built(rf"\binom{{{top.latex}}}{{{below.latex}}}", ATOM, top, below, nested=True)


def root(radicand: Node, degree: Node | None) -> Node:
    if radicand.value is not None:
        if _large(radicand.value):
            raise UnreadableError("a root of a number that is too large")
        exact = _exact_root(radicand.value, degree.value if degree else Fraction(2))
        if exact is not None:
            return rational(exact)
    if degree is None:
        return built(rf"\sqrt{{{radicand.latex}}}", ATOM, radicand, nested=True)
    return power(radicand, divide(rational(Fraction(1)), degree))


@lru_cache(maxsize=256)
def _exact_root(value: Fraction, degree: Fraction | None) -> Fraction | None:
    if degree != 2 or value < 0:
        return None
    top, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
    return Fraction(top, below) if top * top == value.numerator and below * below == value.denominator else None


def applied(function: str, argument: Node) -> Node:
    return built(rf"\{function}({argument.latex})", ATOM, argument, nested=True)


def bracketed(opening: str, argument: Node, closing: str) -> Node:
    """An absolute value, floor or ceiling."""
    if argument.value is not None:
        exact = argument.value
        whole = math.floor(exact) if opening == r"\lfloor " else math.ceil(exact)
        return rational(abs(exact) if opening == "|" else Fraction(whole))
    return built(f"{opening}{argument.latex}{closing}", ATOM, argument, nested=True)
