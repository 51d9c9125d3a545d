r"""Compares expressions in canonical LaTeX (nodes.py): Math-Verify's parser makes them sympy expressions.

Two expressions that differ at a random point are different. Two that agree to 90 digits at every point where both are
real are equal, unless a part of them is so small that 90 digits don't show it. Then, and where they
can't be evaluated, Math-Verify decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]  # sympy ships no types
from latex2sympy2_extended.latex2sympy2 import latex2sympy
from math_verify.grader import sympy_symbolic_eq

from rloop_lightning.rewards.nodes import Node
from rloop_lightning.rewards.points import DIGITS, at, points
from rloop_lightning.rewards.tokens import UnreadableError

_AGREEMENT = sympy.Float(10, 20) ** -90
_ZERO = sympy.Float(10, 20) ** -60
_SMALL, _LARGE = 1e-25, 1e25
_BLURRING = 1e40  # a number of this size leaves 90 of 130 digits to its neighbours
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
    agreeing = 0
    for x, y, point in _values(a, b, imaginary):
        if _agree(x, y):
            agreeing += 1
        elif not _vanish(x, y) and not _blurs(a, point) and not _blurs(b, point):
            return False
    if agreeing >= (2 if a.free_symbols | b.free_symbols else 1) and not _hides(a) and not _hides(b):
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
    known: list[Any] = []
    for x, y, point in _values(a, b, imaginary=False):
        if abs(y) <= _ZERO or _blurs(a, point) or _blurs(b, point):
            continue
        known.append(x / y)
        if abs(known[0]) < _ZERO or (positive and known[0] < 0) or not _agree(known[0], known[-1]):
            return False
    return len(known) >= 2


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


def _values(first: Any, second: Any, imaginary: bool) -> Iterator[tuple[Any, Any, dict[Any, Any]]]:
    """The values of two expressions at each point where both are defined, with the point, one after the other."""
    for point in points((first, second)):
        x, y = at(first, point), at(second, point)
        if _defined(x, imaginary) and _defined(y, imaginary) and _real_roots((first, second), point):
            yield x, y, point


def _real_roots(expressions: Sequence[Any], point: dict[Any, Any]) -> bool:
    r"""Whether no root of a negative number is in the expressions: \sqrt{x}\sqrt{y} is \sqrt{xy} only without one."""
    powers = [part for e in expressions for part in e.atoms(sympy.Pow) if part.base.free_symbols]
    roots = [power for power in powers if not power.exp.is_integer and not _is_whole(at(power.exp, point, 15))]
    return not any(at(root.base, point, 15).is_negative for root in roots)


def _is_whole(value: Any) -> bool:
    return bool(value.is_Float and abs(value) < _LARGE and float(value).is_integer())


def _defined(value: Any, imaginary: bool) -> bool:
    """Whether it is a finite number, and real unless complex numbers are meant."""
    if not getattr(value, "is_number", False) or value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        return False
    real, other = value.as_real_imag()
    if not (real.is_Float or real.is_Rational) or not (other.is_Float or other.is_Rational):
        return False
    # Measured against the value: powers of a negative number are complex, however small they are.
    return imaginary or abs(other) <= _ZERO * abs(value)


def _agree(first: Any, second: Any) -> bool:
    difference, scale = abs(sympy.N(first - second, DIGITS)), max(abs(first), abs(second))
    return bool(difference <= _AGREEMENT * scale or _cancelled(first, second))


def _cancelled(first: Any, second: Any) -> bool:
    """Whether both are zero: sums of exact numbers whose terms cancel out have no digits left."""
    return all(
        value.is_zero or (abs(value) < _ZERO and getattr(value, "_prec", DIGITS) == 1) for value in (first, second)
    )


def _vanish(first: Any, second: Any) -> bool:
    """Whether both are so small that they can be errors of rounding, which neither differ nor agree."""
    return bool(max(abs(first), abs(second)) < _ZERO)


def _hides(expression: Any) -> bool:
    """Whether a part is too small or too large for the comparison of digits to see its neighbours."""
    if not isinstance(expression, sympy.Expr):
        return True
    point = next(iter(points([expression])), None)
    if point is None:
        return True
    for part in sympy.preorder_traversal(expression):
        if part.is_Number:
            if part != 0 and not _SMALL < abs(part) < _LARGE:
                return True
        elif part.is_Pow or isinstance(part, (sympy.exp, sympy.factorial, sympy.binomial)):
            size = abs(at(part, point, 15))
            if not _defined(size, False) or not _SMALL < size < _LARGE:
                return True
        elif part.is_Function and not isinstance(part, _SMOOTH):
            return True
    return bool(expression.has(sympy.Sum, sympy.Product, sympy.Integral))


def _blurs(expression: Any, point: dict[Any, Any]) -> bool:
    """Whether a part is so large at a point that a difference between two values can be an error of rounding."""
    if not isinstance(expression, sympy.Expr) or not point:
        return False
    sizes = (abs(at(part, point, 15)) for part in sympy.preorder_traversal(expression) if part.args)
    return any(size > _BLURRING for size in sizes if size.is_Float or size.is_infinite)


_SMOOTH = (
    sympy.log, sympy.sin, sympy.cos, sympy.tan, sympy.cot, sympy.sec, sympy.csc, sympy.asin, sympy.acos, sympy.atan,
    sympy.acot, sympy.sinh, sympy.cosh, sympy.Abs,
)  # fmt: skip
