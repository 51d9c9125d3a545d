r"""Compares expressions in canonical LaTeX (nodes.py): Math-Verify's parser makes them sympy expressions.

Two expressions that differ at a random point are different. Two that agree to 90 digits at every point are equal,
unless a part of them is so small that 90 digits don't show it. Then, and where they
can't be evaluated, Math-Verify decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]  # sympy ships no types
from latex2sympy2_extended.latex2sympy2 import latex2sympy
from math_verify.grader import sympy_symbolic_eq

from rloop_lightning.rewards.nodes import Node
from rloop_lightning.rewards.tokens import UnreadableError

_DIGITS = 130
_AGREEMENT = sympy.Float(10, 20) ** -90
_ZERO = sympy.Float(10, 20) ** -60
_SMALL, _LARGE = 1e-25, 1e25
_POINTS: tuple[tuple[int, ...], ...] = ((613, 877, 1231, 1543), (1447, 739, 571, 1103), (-857, 1301, -673, 1187))
_I = sympy.Symbol("i", real=True)


@lru_cache(maxsize=4096)
def expression(latex: str) -> Any:
    """The sympy expression of canonical LaTeX, evaluated. Raises UnreadableError."""
    try:
        parsed = latex2sympy(latex, is_real=True, convert_degrees=False, normalization_config=None)
        evaluated = parsed.xreplace({_I: sympy.I}).doit()
    except MemoryError:
        raise
    except Exception as error:  # the fault boundary of two libraries, whose errors have no common type
        raise UnreadableError("a formula that Math-Verify's parser can't read") from error
    if isinstance(evaluated, sympy.Basic) and evaluated.has(sympy.zoo, sympy.nan):
        raise UnreadableError("an undefined value")
    return evaluated


def equal(first: Node, second: Node) -> bool:
    """Whether two expressions without decimals are equal wherever both are defined."""
    if first.latex == second.latex:
        return True
    if first.value is not None and second.value is not None:
        return first.value == second.value
    if "infty" in first.latex + second.latex:
        return False
    a, b = expression(first.latex), expression(second.latex)
    if a == b:
        return True
    imaginary = "i" in (first.latex + second.latex).replace(r"\pi", "").replace("sin", "")
    pairs = [(at(a, point), at(b, point)) for point in _points([a, b])]
    known = [(x, y) for x, y in pairs if _defined(x, imaginary) and _defined(y, imaginary)]
    if not all(_agree(x, y) for x, y in known):
        return False
    if len(known) >= min(2, len(pairs)) and not _hides(a) and not _hides(b):
        return True
    return bool(sympy_symbolic_eq(a, b))


def proportional(first: Sequence[Node], second: Sequence[Node], positive: bool) -> bool:
    """Whether `first[0] - first[1]` is a constant multiple, not zero, of `second[0] - second[1]`.

    Args:
        first: the two sides of an equation or inequality.
        second: those of the other.
        positive: whether the factor must be above zero.
    """
    if any("infty" in node.latex for node in (*first, *second)):
        return False
    a = expression(first[0].latex) - expression(first[1].latex)
    b = expression(second[0].latex) - expression(second[1].latex)
    if a.free_symbols != b.free_symbols or not a.free_symbols or _hides(a) or _hides(b):
        return False
    factors = [(at(a, point), at(b, point)) for point in _points([a, b])]
    known = [x / y for x, y in factors if _defined(x, False) and _defined(y, False) and abs(y) > _ZERO]
    if len(known) < 2 or abs(known[0]) < _ZERO or (positive and known[0] < 0):
        return False
    return all(_agree(known[0], factor) for factor in known[1:])


def number(node: Node, digits: int = 60) -> Fraction | None:
    """The value of a real expression without variables, to that many digits."""
    if node.value is not None:
        return node.value
    if node.names or "infty" in node.latex:
        return None
    value = at(expression(node.latex), {}, digits)
    if not _defined(value, False):
        return None
    return Fraction(*map(int, sympy.Rational(value).as_numer_denom()))


def _points(expressions: Sequence[Any]) -> list[dict[Any, Any]]:
    symbols = sorted(set().union(*(e.free_symbols for e in expressions)), key=str)
    if not symbols:
        return [{}]
    points = []
    for seeds in _POINTS:
        values = [sympy.Float(seeds[i % 4], _DIGITS) / (991 + 2 * i * i) for i in range(len(symbols))]
        points.append(dict(zip(symbols, values, strict=True)))
    return points


def at(expression: Any, point: dict[Any, Any], digits: int = _DIGITS) -> Any:
    """The expression's value at a point, a sympy number; NaN if it can't be evaluated."""
    try:
        return expression.xreplace(point).evalf(digits)
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        return sympy.nan


def _defined(value: Any, imaginary: bool) -> bool:
    """Whether it is a finite number, and real unless complex numbers are meant."""
    if not getattr(value, "is_number", False) or value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        return False
    real, other = value.as_real_imag()
    if not (real.is_Float or real.is_Rational) or not (other.is_Float or other.is_Rational):
        return False
    return imaginary or abs(other) <= _ZERO


def _agree(first: Any, second: Any) -> bool:
    difference, scale = abs(sympy.N(first - second, _DIGITS)), max(abs(first), abs(second))
    return bool(difference <= _AGREEMENT * scale or scale < _ZERO)


def _hides(expression: Any) -> bool:
    """Whether a part is too small or too large for the comparison of digits to see its neighbours."""
    if not isinstance(expression, sympy.Expr):
        return True
    (point, *_) = _points([expression])
    for part in sympy.preorder_traversal(expression):
        if part.is_Number:
            if part != 0 and not _SMALL < abs(part) < _LARGE:
                return True
        elif part.is_Pow or isinstance(part, sympy.exp):
            size = abs(at(part, point, 15))
            if not _defined(size, False) or not _SMALL < size < _LARGE:
                return True
        elif part.is_Function and not isinstance(part, _SMOOTH):
            return True
    return bool(expression.has(sympy.Sum, sympy.Product, sympy.Integral))


_SMOOTH = (
    sympy.log, sympy.sin, sympy.cos, sympy.tan, sympy.cot, sympy.sec, sympy.csc, sympy.asin, sympy.acos, sympy.atan,
    sympy.acot, sympy.sinh, sympy.cosh, sympy.Abs,
)  # fmt: skip
