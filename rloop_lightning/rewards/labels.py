"""The names and units of the items of a list or a point, which tell which item is which."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rloop_lightning.rewards.values import Group, Relation, Scalar, Value

# Letters that have an order wherever they are written together; x = 1, p = 2 is in the order that it is written in.
_ORDERED = ("abcdefgh", "hk", "ijkl", "mn", "pqrs", "rstuvw", "xyz")
_BOTH_CASES = (*_ORDERED, *map(str.upper, _ORDERED))
_INDICES = re.compile(r"(\\?[A-Za-z]+)_\{?(\d+)\}?")


def names(items: Sequence[Value]) -> list[str]:
    return [item.name if isinstance(item, Relation) else "" for item in items]


def values(items: Sequence[Value]) -> list[Value]:
    return [item.sides[-1] if isinstance(item, Relation) and item.name else item for item in items]


def are_named(items: Sequence[Value]) -> bool:
    """Whether every item has a name of its own: `x = 1, y = 2`, but not `x = 1, x = 2`."""
    found = names(items)
    return all(found) and len(set(found)) == len(found) > 1


def by_name(items: Sequence[Value]) -> Sequence[Value]:
    """The items in the order of their names, such as x, y, z and a_1, a_2; others as they are written."""
    found = names(items)
    if any(all(len(name) == 1 and name in letters for name in found) for letters in _BOTH_CASES):
        return sorted(items, key=lambda item: names([item])[0])
    indices = [_INDICES.fullmatch(name) for name in found]
    if None not in indices and len({index[1] for index in indices if index}) == 1:
        numbers = [int(index[2]) for index in indices if index]
        return [item for _, item in sorted(zip(numbers, items, strict=True), key=lambda pair: pair[0])]
    return items


def are_roots(items: Sequence[Value], name: str) -> bool:
    """Whether the items are `x_1 = 1, x_2 = 2`, the values of the variable `x`."""
    indices = [_INDICES.fullmatch(one) for one in names(items)]
    return all(index is not None and index[1] == name for index in indices)


def coordinates(relation: Relation) -> Value:
    """`(x, y) = (1, 2)` as the point with the coordinates `x = 1` and `y = 2`; the value of another named value."""
    value, found = relation.sides[-1], relation.name[1:-1].split(",")
    if relation.name[:1] != "(" or not isinstance(value, Group) or len(value.items) != len(found):
        return value
    items = [Relation(("=",), (item, item), name) for name, item in zip(found, value.items, strict=True)]
    return Group(value.opening, value.closing, tuple(items))


def units_differ(items: Sequence[Value]) -> bool:
    """Whether the items have several units, as in `5 apples, 3 oranges`."""
    return len(_units(items)) > 1


def all_have_units(items: Sequence[Value]) -> bool:
    return all(isinstance(item, Scalar) and item.unit for item in values(items))


def _units(items: Sequence[Value]) -> set[object]:
    return {item.unit for item in values(items) if isinstance(item, Scalar) and item.unit}
