r"""Sets of real numbers in one form: intervals and points in order, no two of which touch.

`[1, 2] \cup [2, 3]` is `[1, 3]`, and `x \ne 3` is `(-\infty, 3) \cup (3, \infty)`. A piece lies between two cuts of the
line, each right before a number or right behind it: `[1, 3)` from before 1 to before 3, the point 2 from before 2 to
behind it. So unions and differences need no cases for closed and open ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce

from rloop_lightning.rewards.relations import INFINITY, MINUS_INFINITY, REALS, intervals
from rloop_lightning.rewards.symbolic import number
from rloop_lightning.rewards.values import Group, Relation, Scalar, Union, Value

_MAX_PIECES = 50
_BEFORE, _BEHIND = 0, 1
_PLACES = 10**40  # ends are compared to 40 decimal places


@dataclass(frozen=True, order=True)
class _Cut:
    at: float  # in units of 1 / _PLACES: an integer of any size, or infinite
    side: int
    end: Scalar = field(compare=False)


_Piece = tuple[_Cut, _Cut]
_LINE = (_Cut(float("-inf"), _BEHIND, MINUS_INFINITY), _Cut(float("inf"), _BEFORE, INFINITY))


def canonical(value: Value) -> Value:
    r"""A set of real numbers in its one form: `\mathbb{R}`, a union, a difference, or conditions on one variable.

    Any other value is itself; so is a set whose ends are not all known numbers.
    """
    pieces = None
    if value == REALS or isinstance(value, Union):
        pieces = _pieces(value)
    elif isinstance(value, Group) and not value.opening:
        pieces = _of_conditions(value)
    if pieces is not None:
        return _value(pieces)
    if isinstance(value, Union) and not value.without:
        return Union(tuple(dict.fromkeys(map(canonical, value.pieces))))
    return value


def _pieces(value: Value) -> list[_Piece] | None:
    """The pieces of a set in order; None if it is none, or an end is not a known number."""
    if value == REALS:
        return [_LINE]
    if isinstance(value, Union):
        parts = [_pieces(part) for part in value.pieces]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or sum(map(len, known)) > _MAX_PIECES:
            return None
        return _less(known[0], known[1]) if value.without else _joined(piece for part in known for piece in part)
    if isinstance(value, Group) and value.opening == "{":
        points = [_point(item) for item in value.items]
        return _joined(point for point in points if point) if all(points) else None
    if not isinstance(value, Group) or value.opening not in ("(", "[") or len(value.items) != 2:
        return None
    start = _cut(value.items[0], _BEFORE if value.opening == "[" else _BEHIND)
    end = _cut(value.items[1], _BEHIND if value.closing == "]" else _BEFORE)
    return [(start, end)] if start and end and start < end else None


def _point(value: Value) -> _Piece | None:
    before, behind = _cut(value, _BEFORE), _cut(value, _BEHIND)
    return (before, behind) if before and behind and before not in _LINE and behind not in _LINE else None


def _cut(value: Value, side: int) -> _Cut | None:
    if not isinstance(value, Scalar) or value.unit or value.percent:
        return None
    if value in (MINUS_INFINITY, INFINITY):
        cut = _LINE[value == INFINITY]
        return cut if cut.side == side else None
    at = number(value.node)
    return None if at is None else _Cut(round(at * _PLACES), side, value)


def _joined(pieces: Iterable[_Piece]) -> list[_Piece]:
    found: list[_Piece] = []
    for start, end in sorted(pieces):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def _less(pieces: Sequence[_Piece], others: Sequence[_Piece]) -> list[_Piece]:
    for start, end in others:
        rests = [rest for low, high in pieces for rest in ((low, min(high, start)), (max(low, end), high))]
        pieces = [(low, high) for low, high in rests if low < high]
    return list(pieces)


def _of_conditions(value: Group) -> list[_Piece] | None:
    r"""The set of conditions on one variable, such as `x < 2 or x > 5` and `x \ge 0, x \ne 1`; None of other values.

    Commas mean "and", but "or" where nothing would fulfil all conditions.
    """
    name = variable(value.items)
    sets = [_of_condition(item, name) for item in value.items] if name else []
    known = [one for one in sets if one is not None]
    if len(known) < 2 or len(known) < len(sets) or sum(map(len, known)) > _MAX_PIECES:
        return None
    together, common = _joined(piece for one in known for piece in one), reduce(_common, known)
    return {"and": common, "or": together, "": common or together}.get(value.joined)


def _of_condition(condition: Value, name: str) -> list[_Piece] | None:
    if isinstance(condition, Relation) and condition.name:
        return _pieces(Group("{", "}", condition.sides[-1:])) if condition.name == name else None
    if isinstance(condition, Relation):
        found = intervals(condition)
        return None if found is None else _pieces(found)
    return [_LINE] if condition == REALS else None


def variable(conditions: Sequence[Value]) -> str:
    """The one variable of conditions, one of which at least is an inequality; empty for other values."""
    names = set()
    for one in conditions:
        if isinstance(one, Relation) and not one.name:
            names |= {name for side in one.sides if isinstance(side, Scalar) for name in side.node.names}
        elif not isinstance(one, Relation) and one != REALS:
            return ""
    return names.pop() if len(names) == 1 else ""


def _common(pieces: Sequence[_Piece], others: Sequence[_Piece]) -> list[_Piece]:
    return _less(pieces, _less(pieces, others))


def _value(pieces: Sequence[_Piece]) -> Value:
    sets = tuple(_group(start, end) for start, end in pieces)
    if all(one.opening == "{" for one in sets):
        return Group("{", "}", tuple(one.items[0] for one in sets))
    return sets[0] if len(sets) == 1 else Union(sets)


def _group(start: _Cut, end: _Cut) -> Group:
    if start.at == end.at:
        return Group("{", "}", (start.end,))
    return Group("[" if start.side == _BEFORE else "(", "]" if end.side == _BEHIND else ")", (start.end, end.end))
