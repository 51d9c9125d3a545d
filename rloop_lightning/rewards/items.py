"""Reads one item of an answer: an equation, an inequality, a set, an interval, a point, a number (quantities.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from rloop_lightning.rewards import nodes
from rloop_lightning.rewards.quantities import base_number, scalar
from rloop_lightning.rewards.titles import DENYING
from rloop_lightning.rewards.tokens import Token, UnreadableError
from rloop_lightning.rewards.values import Group, Relation, Scalar, Union, Value

Parts = Sequence[list[Token]]
ReadItems = Callable[[Parts], tuple[Value, ...]]  # the items of a bracket; they may be lists

_ROUNDING = Fraction(1, 50)  # 1/3 = 0.33 is rounded
_INEQUALITIES = ("<", ">", "<=", ">=", "!=")
_NAME = r"\\?[A-Za-z]+(?:\{[A-Za-z]+\}| [A-Za-z]+)?'*(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))?(?:\([A-Za-z0-9,_{}+\-]*\))?"
_NAMED = re.compile(
    rf"(?P<single>{_NAME})|\|{_NAME}\||frac\{{{_NAME}\}}\{{{_NAME}\}}|{_NAME}[:/]{_NAME}|\({_NAME}(?:,{_NAME})+\)"
)
_PRODUCT = re.compile(r"[a-eij-z]\(.*[-+].*\)")  # n(n+1) is no function


def split(tokens: Sequence[Token], separators: Sequence[str]) -> list[list[Token]]:
    """The tokens between separators outside brackets. An empty part beside "and" or "or" is left out."""
    parts: list[list[Token]] = [[]]
    depth, bars = 0, False
    for token in tokens:
        sign = token.kind in ("sign", "join")
        depth += token.nesting
        depth += (token.kind == "command") * (token.text.startswith("begin ") - token.text.startswith("end "))
        if depth == 0 and sign and token.text in separators:
            if parts[-1] or token.kind != "join":
                parts.append([])
            bars = token.kind == "join"
        else:
            parts[-1].append(token)
    if separators and separators != ("~",) and len(parts) > 1 and not all(parts):
        raise UnreadableError("an empty place in a list" if not bars else "a list that is not finished")
    return parts


def joined_by(tokens: Sequence[Token]) -> str:
    """What joins the items of a list besides commas: "and", "or", nothing, or both."""
    depth, found = 0, set()
    for token in tokens:
        depth += token.nesting
        if depth == 0 and token.kind == "join":
            found.add(token.text)
    return " ".join(sorted(found))


def read_item(tokens: list[Token], read_items: ReadItems) -> Value:
    """The value of one item. Raises UnreadableError."""
    if not tokens:
        raise UnreadableError("an empty item")
    if any(token.text in ("pm", "mp") and token.kind == "command" for token in tokens):
        return _both_signs(tokens, read_items)
    sides = split(tokens, ("~",))
    if len(sides) > 1 and not sides[0]:
        return read_item(sides[1], read_items)
    if len(sides) > 1:  # 1/3 ~ 0.333 is 1/3, but x ~ 11 is 11
        named = _name_of(sides[0])  # but not pi
        equation = [*sides[0], Token("sign", "="), *sides[1]]
        return read_item(equation if named else sides[0], read_items)
    sides = split(tokens, ("=",))
    if len(sides) > 1:
        return _equation(sides, read_items)
    sides = split(tokens, ("in",))
    if len(sides) == 2 and _NAMED.fullmatch(_joined(sides[0])):
        return read_item(sides[1], read_items)
    if len(split(tokens, _INEQUALITIES)) > 1:
        return _inequality(tokens, read_items)
    return _set(tokens, read_items)


def _joined(tokens: Sequence[Token]) -> str:
    if any(token.kind == "command" and token.text != "frac" for token in tokens):
        return "+"  # no name
    return "".join(token.text for token in tokens)


def _both_signs(tokens: list[Token], read_items: ReadItems) -> Value:
    signs = [token.text for token in tokens if token.kind == "command" and token.text in ("pm", "mp")]
    if signs.count("pm") > 1 or signs.count("mp") > 1:
        raise UnreadableError("more than one sign of plus or minus")
    found = []
    for upper in ("+", "-"):
        lower = "-" if upper == "+" else "+"
        chosen = {"pm": upper, "mp": lower}
        part = [Token("sign", chosen[t.text]) if t.kind == "command" and t.text in chosen else t for t in tokens]
        found.append(read_item(part, read_items))
    first, second = found
    if isinstance(first, Relation) and first.name and isinstance(second, Relation):
        return Relation(first.signs, (first.sides[0], Group("", "", (first.sides[-1], second.sides[-1]))), first.name)
    return Group("", "", (first, second))


def _equation(sides: Parts, read_items: ReadItems) -> Value:
    left, right = sides[0], sides[-1]
    name = _name_of(left)
    if not name and len(sides) == 2 and _name_of(right):
        left, right, name = right, left, _name_of(right)
    value = read_item(list(right), read_items)
    if name:
        return Relation(("=",), (value, value), name)
    if len(sides) > 2:
        return value
    before = read_item(list(left), read_items)
    if isinstance(before, Scalar) and isinstance(value, Scalar) and not before.node.names | value.node.names:
        return Relation(("=",), (before, value)) if _differ(before, value) else value
    return Relation(("=",), (before, value))


def _differ(first: Scalar, second: Scalar) -> bool:
    """Whether two rational numbers differ by more than rounding, so that `6 = 5` is no 5."""
    one, other = first.node.value, second.node.value
    if one is None or other is None or first.unit or second.unit or first.percent != second.percent:
        return False
    if one.denominator == other.denominator == 1:
        return one != other  # 5! = 121 is no rounding
    return abs(one - other) > _ROUNDING * max(abs(one), abs(other))


def _name_of(tokens: Sequence[Token]) -> str:
    if len(tokens) == 1 and tokens[0].kind == "title":
        return tokens[0].text
    found = _NAMED.fullmatch(_joined(tokens))
    if found is None or found.group("single") in nodes.CONSTANTS or _PRODUCT.fullmatch(found.group()):
        return ""
    said = " ".join(token.text for token in tokens if not token.text.isupper())  # NO is a segment
    if DENYING & set(said.lower().split()):
        return ""
    return found.group()


def _inequality(tokens: list[Token], read_items: ReadItems) -> Value:
    signs, depth = [], 0
    for token in tokens:
        depth += token.nesting
        if depth == 0 and token.kind == "sign" and token.text in _INEQUALITIES:
            signs.append(token.text)
    sides = [_set(side, read_items) for side in split(tokens, _INEQUALITIES)]
    return Relation(tuple(signs), tuple(sides))


def _set(tokens: list[Token], read_items: ReadItems) -> Value:
    pieces = split(tokens, ("cup",))
    if len(pieces) > 1:
        return Union(tuple(_set(piece, read_items) for piece in pieces))
    pieces = split(tokens, ("setminus",))
    if len(pieces) == 2:
        return Union(tuple(_set(piece, read_items) for piece in pieces), without=True)
    if len(tokens) == 1 and tokens[0].text == "emptyset":
        return Group("{", "}", ())
    opening, closing = tokens[0], tokens[-1]
    if len(tokens) > 1 and opening.text in ("(", "[", r"\{") and closing.text in (")", "]", r"\}") and _spans(tokens):
        inside = tokens[1:-1]
        parts = split(inside, (",", ";")) if inside else []
        if opening.text == r"\{":
            if closing.text != r"\}":
                raise UnreadableError("brackets that do not match")
            if conditions := _conditions(inside):
                found = read_items(conditions)
                return found[0] if len(found) == 1 else Group("", "", found, joined_by(inside) or "and")
            return Group("{", "}", read_items(parts))
        if len(parts) > 1:
            return Group(opening.text, closing.text, read_items(parts))
    parts = split(tokens, (":",))
    if len(parts) > 1:
        return _ratio(parts)
    return base_number(tokens) or scalar(tokens)


def _conditions(tokens: list[Token]) -> Parts:
    r"""The conditions in a set's braces, `x : x > 3` or `x \in \mathbb{R} \mid x > 3`; none if they hold items."""
    parts = split(tokens, (":", "mid", "|"))
    if len(parts) != 2 or len(split(parts[1], _INEQUALITIES)) < 2:
        return []
    named = split(parts[0], ("in",))
    of_reals = len(named) == 1 or _joined(named[1]) == r"\mathbb{R}"
    name = _joined(named[0])
    conditions = split(parts[1], (",", "and", "or"))
    about_it = all({token.text for token in one if token.kind == "name"} == {name} for one in conditions)
    return conditions if of_reals and len(name) == 1 and about_it else []


def _spans(tokens: Sequence[Token]) -> bool:
    """Whether the first bracket closes with the last token."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += token.nesting
        if depth == 0:
            return i == len(tokens) - 1
    return False


def _ratio(parts: Parts) -> Value:
    """`3:2`, a ratio or a time of day; a unit such as "a.m." belongs to the last part."""
    return Group(":", ":", tuple(scalar(list(part)) for part in parts))
