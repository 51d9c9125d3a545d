"""Restricted number types for settings, and checks of their values.

    @dataclass(frozen=True)
    class LoopConfig:
        rounds: PositiveInt = 3

        def __post_init__(self) -> None:
            check_fields(self, "--loop")  # rules between fields come after it

The command line's parser enforces these types. A class constructed from Python has no parser and calls `check_fields`.
For a type checker, the types are plain numbers.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    PositiveFloat = float
    NonNegativeFloat = float
    ClosedUnitInterval = float
    OpenUnitInterval = float
    LeftOpenUnitInterval = float
    RightOpenUnitInterval = float
    AtLeastOne = float
    AboveOne = float
    Seed = int
else:
    from jsonargparse.typing import (
        ClosedUnitInterval,
        NonNegativeFloat,
        NonNegativeInt,
        OpenUnitInterval,
        PositiveFloat,
        PositiveInt,
        restricted_number_type,
    )

    # The docstrings follow jsonargparse's wording, because `in_words` parses them.
    LeftOpenUnitInterval = restricted_number_type(
        "LeftOpenUnitInterval", float, [(">", 0), ("<=", 1)], docstring="float restricted to be >0 and ≤1"
    )
    RightOpenUnitInterval = restricted_number_type(
        "RightOpenUnitInterval", float, [(">=", 0), ("<", 1)], docstring="float restricted to be ≥0 and <1"
    )
    AtLeastOne = restricted_number_type("AtLeastOne", float, (">=", 1), docstring="float restricted to be ≥1")
    AboveOne = restricted_number_type("AboveOne", float, (">", 1), docstring="float restricted to be >1")
    Seed = restricted_number_type(  # what numpy takes
        "Seed", int, [(">=", 0), ("<", 2**32)], docstring=f"int restricted to be ≥0 and <{2**32}"
    )

__all__ = [
    "AboveOne",
    "AtLeastOne",
    "ClosedUnitInterval",
    "LeftOpenUnitInterval",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OpenUnitInterval",
    "PositiveFloat",
    "PositiveInt",
    "RightOpenUnitInterval",
    "Seed",
    "check_fields",
    "in_words",
    "plain",
    "wrong_fields",
    "wrong_values",
]


def check_fields(holder: object, flag: str) -> None:
    """Raise one ValueError that names every argument with a wrong value; see `wrong_fields`."""
    if wrong := wrong_fields(holder, flag):
        raise ValueError("\n".join(wrong))


def wrong_fields(holder: object, flag: str) -> list[str]:
    """Errors in the constructor arguments of an object, one message each.

    It checks the `__init__` arguments of the object's class and its bases whose types are restricted numbers or
    literals, alone, in containers or in unions. The value of an argument is the attribute of the same name. Missing
    attributes are not checked, so that a base class may call this before its subclass sets its own.

    Args:
        holder: a dataclass instance, or any object that stores its arguments as attributes.
        flag: the group on the command line, such as `--loop`.
    """
    names = _restricted_arguments(type(holder))
    return wrong_values(type(holder), {name: getattr(holder, name) for name in names if hasattr(holder, name)}, flag)


def wrong_values(cls: type, values: Mapping[str, Any], flag: str) -> list[str]:
    """Errors in constructor arguments of a class, before or after construction; see `wrong_fields`.

    Args:
        values: arguments by name; only those with restricted types are checked.
    """
    return [
        f"{flag}.{name}: expected {in_words(hint)}, got {values[name]!r}"
        for name, hint in _restricted_arguments(cls).items()
        if name in values and not _conforms(values[name], hint)
    ]


def in_words(hint: Any) -> str:
    """A type in words, to follow "expected" in a message: "an integer > 0 or null"."""
    words = {bool: "true or false", int: "an integer", float: "a finite number", str: "text", type(None): "null"}
    if hint in words:
        return words[hint]
    if get_origin(hint) is Literal:
        *others, last = map(str, get_args(hint))
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(in_words(inner) for inner in get_args(hint))
    if get_origin(hint) in (list, tuple):
        inner = dict.fromkeys(in_words(inner) for inner in get_args(hint) if inner is not Ellipsis)
        return f"a list, each {' or '.join(inner)}"
    if get_origin(hint) is dict:
        return "a mapping" if get_args(hint)[1] is Any else f"a mapping, each value {in_words(get_args(hint)[1])}"
    if _is_restricted_number(hint):
        limits = (hint.__doc__ or "").rpartition("restricted to be ")[2].replace("≥", ">=").replace("≤", "<=")
        limits = re.sub("([<>]=?) ?", r"\1 ", limits)
        return f"{'an integer' if issubclass(hint, int) else 'a number'} {limits}"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def plain(value: Any) -> Any:
    """Convert restricted numbers in a value to plain ones: loading with `weights_only` accepts no other types."""
    if isinstance(value, list | tuple):
        return type(value)(plain(inner) for inner in value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if _is_restricted_number(type(value)):
        return int(value) if isinstance(value, int) else float(value)
    return value


def _restricted_arguments(cls: type) -> dict[str, Any]:
    """The restricting types of a class's constructor arguments, including inherited ones."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base):
            try:
                hints = typing.get_type_hints(vars(base)["__init__"])
            except NameError:  # a name that is imported only for type checkers
                continue
            found |= {name: hint for name, hint in hints.items() if name != "return" and _restricts(hint)}
    return found


def _restricts(hint: Any) -> bool:
    return get_origin(hint) is Literal or _is_restricted_number(hint) or any(map(_restricts, get_args(hint)))


def _is_restricted_number(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, int | float) and hint not in (int, float, bool)


def _conforms(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_conforms(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(_conforms(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_conforms(one, inner[1]) for one in value.values())
    if _is_restricted_number(hint):
        return _is_number(value, Integral if issubclass(hint, int) else Real) and _takes(hint, value)
    if hint is float:
        return _is_number(value, Real)
    return not isinstance(hint, type) or isinstance(value, hint)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _takes(restricted: type, value: Any) -> bool:
    try:
        restricted(value)
    except ValueError:
        return False
    return True
