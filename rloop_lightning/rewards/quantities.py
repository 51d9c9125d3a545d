"""Reads a number or an expression with its unit, its currency or its percent sign, and numbers in other bases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from rloop_lightning.rewards import nodes
from rloop_lightning.rewards.grammar import parse
from rloop_lightning.rewards.tokens import CURRENCIES, FUNCTIONS, Token, UnreadableError
from rloop_lightning.rewards.units import MULTIPLIERS, is_product_too, is_unit_letter, is_unit_text, is_unit_word, unit
from rloop_lightning.rewards.values import BaseNumber, Scalar

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "twelve": 12, "sixteen": 16}  # fmt: skip


def base_number(tokens: Sequence[Token]) -> BaseNumber | None:
    """A number in another base, `1010_2` or `1A3_{16}`; None if it is none. Raises UnreadableError."""
    texts = [token.text for token in tokens]
    if texts[:1] == ["-"]:
        found = base_number(tokens[1:])
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
        depth += before.nesting
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
