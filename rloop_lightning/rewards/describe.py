"""Says in words what an answer was read as, for reports and messages. The texts are the model's: print them as such."""

from __future__ import annotations

import re

from rloop_lightning.rewards.values import BaseNumber, Choice, Group, Reading, Relation, Scalar, Text, Union, Value

_NAME = re.compile(r"x_\{(\d+)\}")
_MAX_CHARACTERS = 200


def describe(reading: Reading) -> str:
    """All meanings of an answer, as in `7/2 or the list 3, 5`; empty if it can't be read."""
    return " or ".join(map(_described, reading.values))


def kind(reading: Reading) -> str:
    """The type of the answer's first meaning, such as `integer`, `list` or `text`; `unreadable` if there is none."""
    return _kind(reading.values[0]) if reading.values else "unreadable"


def flags(gold: str, reading: Reading) -> list[str]:
    """What is suspicious about a gold answer: each in a few words."""
    found = []
    if not reading.values:
        return [f"can't be read: {reading.problem}"]
    if len(reading.values) > 1 and not isinstance(reading.values[0], (Choice, Text)):
        found.append("can be read in several ways")
    first = reading.values[0]
    if isinstance(first, Scalar) and first.unit:
        found.append(f"the unit {' '.join(first.unit)} is not required")
    if isinstance(first, Group) and not first.opening:
        found.append("a list of several answers")
    if (isinstance(first, Choice) and not first.content) or (
        isinstance(first, Scalar) and len(reading.text) == 1 and reading.text.isalpha()
    ):
        found.append("a single letter")
    if isinstance(first, Text):
        found.append("text, compared word for word")
    if "boxed" in gold or "answer" in gold.lower():
        found.append("a sentence that states the answer")
    return found


def _described(value: Value) -> str:
    text = _value(value)
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 3] + "..."


def _value(value: Value) -> str:
    if isinstance(value, Scalar):
        return _scalar(value)
    if isinstance(value, Choice):
        return f"choice {value.letter}" + (f" ({_value(value.content[0])})" if value.content else "")
    if isinstance(value, Text):
        return f"the words {value.words!r}"
    if isinstance(value, BaseNumber):
        return f"{value.value} written in base {value.base}"
    if isinstance(value, Union):
        return (" \\ " if value.without else " \N{UNION} ").join(map(_value, value.pieces))
    if isinstance(value, Relation):
        return _relation(value)
    items = (":" if value.opening == ":" else ", ").join(map(_value, value.items))
    return (
        items
        if value.opening == ":"
        else f"the list {items}"
        if not value.opening
        else value.opening + items + value.closing
    )


def _relation(value: Relation) -> str:
    if value.name:
        return f"{value.name} = {_value(value.sides[-1])}"
    parts = [_value(value.sides[0])]
    for sign, side in zip(value.signs, value.sides[1:], strict=True):
        parts += [sign, _value(side)]
    return " ".join(parts)


def _scalar(value: Scalar) -> str:
    exact = value.node.value
    literal = value.node.literal
    if exact is not None and literal is not None and literal.decimal and len(str(float(exact))) < 20:
        text = f"{float(exact):g}" if literal.digits <= 6 else f"{float(exact):.{min(literal.digits, 17)}g}"
    elif exact is not None and exact.numerator.bit_length() + exact.denominator.bit_length() < 2_000:
        text = str(exact)
    else:
        text = _NAME.sub(lambda found: _decoded(int(found.group(1))), value.node.latex).replace("\\cdot ", "*")
    return text + ("%" if value.percent else "") + (" " + " ".join(value.unit) if value.unit else "")


def _decoded(number: int) -> str:
    """The name that nodes.name encoded."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big").decode(errors="replace")


def _kind(value: Value) -> str:
    if isinstance(value, Scalar):
        return _scalar_kind(value)
    if isinstance(value, Group):
        brackets = value.opening + value.closing
        if brackets in ("", "{}", "::"):
            return {"": "list", "{}": "set", "::": "ratio"}[brackets]
        return "point or open interval" if brackets == "()" else "interval"
    if isinstance(value, Relation):
        return "equation" if value.signs == ("=",) else "inequality"
    return {Union: "union of sets", Choice: "choice", Text: "text", BaseNumber: "number in another base"}[type(value)]


def _scalar_kind(value: Scalar) -> str:
    node = value.node
    if value.percent:
        return "percentage"
    if node.matrix is not None:
        return "matrix"
    if node.literal is not None and node.literal.decimal:
        return "decimal"
    if node.value is not None:
        return "integer" if node.value.denominator == 1 else "fraction"
    return "expression"
