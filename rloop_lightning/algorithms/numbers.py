"""Types for hyper-parameters that are checks of one number: `lr: PositiveFloat`.

The command line refuses a value that the type does not allow; `number_faults` does so for a class made in Python.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
)

__all__ = [
    "AboveOne",
    "AtLeastOne",
    "ClosedUnitInterval",
    "DecayRate",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OpenUnitInterval",
    "PositiveFloat",
    "PositiveInt",
    "Share",
]

if TYPE_CHECKING:  # a type checker sees what the values are
    AboveOne: TypeAlias = float
    AtLeastOne: TypeAlias = float
    DecayRate: TypeAlias = float
    Share: TypeAlias = float
else:
    AboveOne = restricted_number_type("AboveOne", float, (">", 1))
    AtLeastOne = restricted_number_type("AtLeastOne", float, (">=", 1))
    DecayRate = restricted_number_type("DecayRate", float, [(">=", 0), ("<", 1)])
    Share = restricted_number_type("Share", float, [(">", 0), ("<=", 1)])

_ALLOWED: Mapping[Any, str] = {
    PositiveInt: ">= 1",
    NonNegativeInt: ">= 0",
    PositiveFloat: "> 0",
    NonNegativeFloat: ">= 0",
    ClosedUnitInterval: "in [0, 1]",
    OpenUnitInterval: "in (0, 1)",
    AboveOne: "> 1",
    AtLeastOne: ">= 1",
    DecayRate: "in [0, 1)",
    Share: "in (0, 1]",
}


def allowed(hint: Any) -> str | None:
    """The values that a type of this module allows, in words: `> 0`; of `X | None`, `> 0 or null`; None for others."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [allowed(one) for one in get_args(hint) if one is not type(None)]
        return f"{inner[0]} or null" if len(inner) == 1 and inner[0] else None
    return _ALLOWED.get(hint)


def number_faults(cls: type, given: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Arguments whose value their type does not allow: name, the values that are allowed, the one that was given.

    Args:
        cls: the class; its `__init__` and those that it extends have the annotations.
        given: keyword arguments.
    """
    hints = _hints(cls)
    for name, value in given.items():
        words = allowed(hints.get(name))
        if words is None:
            continue
        if isinstance(value, float) and math.isinf(value):
            yield name, "finite", value
        elif not _is_allowed(hints[name], value):
            yield name, words, value


def _is_allowed(hint: Any, value: Any) -> bool:
    for one in get_args(hint) or (hint,):
        if one is type(None):
            if value is None:
                return True
            continue
        try:
            one(value)
        except (TypeError, ValueError):
            continue
        return True
    return False


def _hints(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base):
            found |= get_type_hints(vars(base)["__init__"])
    return found
