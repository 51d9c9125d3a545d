"""Reads one item of an answer: an equation, an inequality, a set, an interval, a point, a number with its unit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

from rloop_lightning.rewards import nodes
from rloop_lightning.rewards.grammar import parse
from rloop_lightning.rewards.titles import DENYING
from rloop_lightning.rewards.tokens import CURRENCIES, FUNCTIONS, Token, UnreadableError
from rloop_lightning.rewards.units import MULTIPLIERS, is_product_too, is_unit_letter, is_unit_text, is_unit_word, unit
from rloop_lightning.rewards.values import BaseNumber, Group, Relation, Scalar, Union, Value

Parts = Sequence[list[Token]]
ReadItems = Callable[[Parts], tuple[Value, ...]]  # the items of a bracket; they may be lists

_OPEN, _CLOSE = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")
_ROUNDING = Fraction(1, 50)  # 1/3 = 0.33 is rounded
_INEQUALITIES = ("<", ">", "<=", ">=", "!=")
_NAME = r"\\?[A-Za-z]+(?:\{[A-Za-z]+\}| [A-Za-z]+)?'*(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))?(?:\([A-Za-z0-9,_{}+\-]*\))?"
_NAMED = re.compile(
    rf"(?P<single>{_NAME})|\|{_NAME}\||frac\{{{_NAME}\}}\{{{_NAME}\}}|{_NAME}[:/]{_NAME}|\({_NAME}(?:,{_NAME})+\)"
)
_PRODUCT = re.compile(r"[a-eij-z]\(.*[-+].*\)")  # n(n+1) is no function
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "twelve": 12, "sixteen": 16}  # fmt: skip


def split(tokens: Sequence[Token], separators: Sequence[str]) -> list[list[Token]]:
    """The tokens between separators outside brackets. An empty part beside "and" or "or" is left out."""
    parts: list[list[Token]] = [[]]
    depth, bars = 0, False
    for token in tokens:
        sign = token.kind in ("sign", "join")
        depth += (token.kind == "sign") * ((token.text in _OPEN) - (token.text in _CLOSE))
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
        depth += (token.kind == "sign") * ((token.text in _OPEN) - (token.text in _CLOSE))
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
            return Group("{", "}", read_items(parts))
        if len(parts) > 1:
            return Group(opening.text, closing.text, read_items(parts))
    parts = split(tokens, (":",))
    if len(parts) > 1:
        return _ratio(parts)
    return _base_number(tokens) or scalar(tokens)


def _spans(tokens: Sequence[Token]) -> bool:
    """Whether the first bracket closes with the last token."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token.kind == "sign") * ((token.text in _OPEN) - (token.text in _CLOSE))
        if depth == 0:
            return i == len(tokens) - 1
    return False


def _ratio(parts: Parts) -> Value:
    """`3:2`, a ratio or a time of day; a unit such as "a.m." belongs to the last part."""
    return Group(":", ":", tuple(scalar(list(part)) for part in parts))


def _base_number(tokens: Sequence[Token]) -> BaseNumber | None:
    """`1010_2`, `1A3_{16}`."""
    texts = [token.text for token in tokens]
    if texts[:1] == ["-"]:
        found = _base_number(tokens[1:])
        return found and BaseNumber(-found.value, found.base)
    at = texts.index("_") if "_" in texts[1:] else 0
    if not any(token.kind == "number" for token in tokens[:at]) or not "".join(texts[:at]).isalnum():
        return None
    digits = "".join(texts[:at]).lower()
    index = "".join(texts[at + 1 :]).strip("{}").lower()
    base = _BASES.get(index, int(index) if index.isdigit() and len(index) < 3 else 0)
    if not 2 <= base <= 36 or not digits or len(digits) > 1000 or not set(digits) <= set(_DIGITS[:base]):
        if not digits.isdigit():
            return None  # 9a_1
        raise UnreadableError("a number with an index that is no base of its digits")
    return BaseNumber(int(digits, base), base)


def scalar(tokens: list[Token]) -> Scalar:
    """A number or an expression, with a unit, a currency or a percent sign. Raises UnreadableError."""
    currency = ""
    if tokens and tokens[0].text.lstrip("\\") in CURRENCIES and tokens[0].kind == "sign":
        currency = CURRENCIES[tokens[0].text.lstrip("\\")]
        tokens = tokens[1:]
    elif len(tokens) > 1 and tokens[0].text == "-" and tokens[1].text.lstrip("\\") in CURRENCIES:
        currency = CURRENCIES[tokens[1].text.lstrip("\\")]
        tokens = [tokens[0], *tokens[2:]]
    at = _unit_begins(tokens)
    tail, tokens = tokens[at:], tokens[:at]
    words = unit(_unit_text(tail))
    if currency and words == ("k",):
        raise UnreadableError("thousands of a currency")
    words = words if currency in words else unit(f"{currency} {_unit_text(tail)}")
    percent = bool(tokens) and tokens[-1].text in ("%", r"\%") and tokens[-1].kind == "sign"
    if percent:
        tokens = tokens[:-1]
    if tail and tail[0].text.lower() in MULTIPLIERS:
        factor = nodes.rational(Fraction(MULTIPLIERS[tail[0].text.lower()]))
        return Scalar(nodes.multiply(parse(tokens), factor), unit(_unit_text(tail[1:])), percent)
    return Scalar(_expression(tokens), words, percent)


def _expression(tokens: list[Token]) -> nodes.Node:
    signs = [token.text for token in tokens]
    if signs in (["infty"], ["+", "infty"]):
        return nodes.Node(r"\infty")
    if signs == ["-", "infty"]:
        return nodes.Node(r"-\infty", nodes.SUM)
    return parse(tokens)


def _unit_begins(tokens: Sequence[Token]) -> int:
    """Where the unit begins; the number of tokens if there is none. Degrees of an angle in a function are no unit."""
    if any(token.kind == "command" and token.text in FUNCTIONS for token in tokens) and tokens[-1].text == "degree":
        return len(tokens)
    depth, variables = 0, False
    for at in range(1, len(tokens)):
        first, before = tokens[at], tokens[at - 1]
        depth += (before.kind == "sign") * ((before.text in _OPEN) - (before.text in _CLOSE))
        variables |= before.kind == "word" or (before.kind == "name" and before.text not in nodes.CONSTANTS)
        if _is_rate(tokens[at:]):
            return at
        if depth > 0 or (first.kind == "word" and is_product_too(first.text) and variables):
            continue  # m + n - 2nm
        if first.kind == "word" and before.text.startswith("\\") and is_product_too(first.text):
            first = replace(first, spaced=False)  # 2\pi hr has to have its space
        if before.kind in ("number", "name", "word") or before.text in ("}", ")", "]", "!", "|", "%", r"\%", "degree"):
            rest = zip(tokens[at:], tokens[at + 1 :], strict=False)
            if _begins_unit(first) and all(_continues_unit(token, earlier) for earlier, token in rest):
                return at
    return len(tokens)


def _is_rate(tokens: Sequence[Token]) -> bool:
    """Whether the tokens are a unit such as m/s in plain letters, behind a space."""
    if len(tokens) < 3 or not tokens[0].spaced or tokens[0].kind != "name" or tokens[1].text != "/":
        return False
    rest = "".join(token.text for token in tokens[3:])
    return is_unit_letter(tokens[0].text) and is_unit_letter(tokens[2].text) and rest in ("", "^2", "^{2}")


def _begins_unit(token: Token) -> bool:
    if token.kind == "text":
        return is_unit_text(token.text) or (len(token.text) == 1 and is_unit_letter(token.text))
    if token.kind == "word":
        return is_unit_word(token.text, token.spaced) or token.text.lower() in MULTIPLIERS
    return token.kind == "sign" and (token.text in ("degree", r"\$") or token.text in CURRENCIES)


def _continues_unit(token: Token, earlier: Token) -> bool:
    if token.kind == "number":
        return earlier.text in ("^", "{", "-")
    if token.kind in ("text", "word"):
        return _begins_unit(replace(token, spaced=True))
    return token.kind == "name" or token.text in ("/", "^", "{", "}", "-", ".", "degree", r"\$")


def _unit_text(tokens: Sequence[Token]) -> str:
    """The unit's words; an exponent follows its unit without a space."""
    parts = ["deg" if t.text == "degree" else CURRENCIES.get(t.text.lstrip("\\"), t.text) for t in tokens]
    return " ".join(parts).replace(" ^ ", "^").replace("{ ", "").replace(" }", "")
