r"""Reads an answer: normalise (spelling.py), cut into tokens (titles.py), find its structure, parse (grammar.py).

An ambiguous answer has several readings: `3,5` is a decimal or a list, `A` a choice or a variable. Whoever compares
takes the reading that the gold answer has. What can't be read as a whole is not read in part.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from rloop_lightning.rewards.altering import spelled_number
from rloop_lightning.rewards.commas import candidates, without_thousands
from rloop_lightning.rewards.items import Parts, joined_by, read_item, split
from rloop_lightning.rewards.sayings import meaning
from rloop_lightning.rewards.spelling import normalise, words
from rloop_lightning.rewards.titles import tokenize_named
from rloop_lightning.rewards.tokens import Token, UnreadableError
from rloop_lightning.rewards.units import is_product_too, is_unit_letter, is_unit_text
from rloop_lightning.rewards.values import Choice, Group, Reading, Relation, Text, Value

MAX_CHARACTERS = 4_000
_DECORATION = re.compile(r"^(?:\*\*|__|`|\\?\"|“|”)+|(?:\*\*|__|`|\\?\"|“|”)+$")
_STOP = re.compile(r"(?<![.\N{HORIZONTAL ELLIPSIS}])[\s.,;:]$")
_REMARK = re.compile(r"(?<=[\d}])\s+\(([A-Za-z -]{4,30}|one|two|six|ten)\)$")
_SEVERAL = re.compile(r"[,;<>]|\\(?:l|g|n)eq|\b(?:and|or)\b")
_SMALL_WORDS = words("no on of if in is it at as an be by he me my so to up us we am do go")
_BOLD = re.compile(r"\\vec\{([A-J])\}")
_WORD_SIGNS = ("-", "'", ",", ".", "&", '"', "/")
_CHOICES = "ABCDEFGHIJ"
_BETWEEN_CHOICES = (",", ";", "/", "&")


@lru_cache(maxsize=4096)
def read(text: str) -> Reading:
    """All readings of an answer. Never raises."""
    if len(text) > MAX_CHARACTERS:
        return Reading(text, (), f"longer than {MAX_CHARACTERS:,} characters")
    spelled = _undecorated(normalise(_undecorated(text)))
    remark = _REMARK.search(spelled)
    if remark and (is_unit_text(remark.group(1)) or _repeats(spelled[: remark.start()], remark.group(1))):
        spelled = spelled[: remark.start()]  # 5 (five)
    if not spelled:
        return Reading("", (), "empty")
    values, products, problem = _readings(candidates(spelled))
    if not values and without_thousands(spelled) != spelled:
        values, products, _ = _readings([without_thousands(spelled)])
    if not values and spelled.count("=") > 1 and not _SEVERAL.search(spelled):
        first, *_, last = spelled.split("=")
        if all(part.count("{") == part.count("}") for part in (first, last)):
            # Of a = b = c, only the ends count. If they differ, the unreadable middle may say why.
            ends = read(f"{first}={last}")
            differ = any(isinstance(value, Relation) and not value.name for value in ends.values)
            return replace(read(last) if differ else ends, text=spelled)
    return Reading(spelled, tuple(dict.fromkeys(values)), "" if values else problem, tuple(products))


def _repeats(number: str, remark: str) -> bool:
    """Whether a remark says the number before it in words: 5 (five)."""
    return spelled_number(remark) == (int(number) if number.isdecimal() and len(number) < 3 else -1)


def _readings(spellings: Sequence[str]) -> tuple[list[Value], list[Value], str]:
    """The values of each spelling, the products that its words can be, and why one is unreadable."""
    values: list[Value] = []
    products: list[Value] = []
    problem = ""
    for spelling in spellings:
        try:
            tokens = tokenize_named(spelling)
            values += _read_tokens(tokens)
            products += _products(tokens)
        except (UnreadableError, ArithmeticError, RecursionError) as error:
            problem = problem or str(error) or "too deeply nested"
    return values, products, problem


def _undecorated(text: str) -> str:
    text = text.strip()
    while True:
        shorter = _STOP.sub("", _DECORATION.sub("", text)).strip()
        if shorter.endswith("\\"):
            shorter = text.rstrip()[: len(shorter) + 1]
        if shorter == text or not shorter:
            return shorter
        text = shorter


def _read_tokens(tokens: list[Token]) -> list[Value]:
    while len(tokens) > 1 and tokens[0].text == "{" and tokens[0].kind == "sign" and _closes(tokens) == len(tokens) - 1:
        tokens = tokens[1:-1]
    if not tokens:
        raise UnreadableError("an empty group")
    if _is_text(tokens):
        return _readings_of_text(tokens)
    values: list[Value] = []
    choice = _choice(tokens)
    if choice is not None:
        values.append(choice)
    try:
        values.append(read_list(tokens))
    except UnreadableError:
        if not values:
            raise
    if (short := _with_short_exponents(tokens)) != tokens:
        with contextlib.suppress(UnreadableError):
            values.append(read_list(short))
    if any(map(_may_be_product, tokens)):
        with contextlib.suppress(UnreadableError):
            values.append(read_list(_with_products(tokens)))  # 2km can be 2mk
    return values


def _with_short_exponents(tokens: list[Token]) -> list[Token]:
    """The tokens with one letter in each exponent that has no braces, as LaTeX sets it: 2^nx is 2^n x or 2^(nx)."""
    found: list[Token] = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.kind == "word" and before is not None and before.text == "^":
            found += [Token("name", letter) for letter in token.text]
        else:
            found.append(token)
    return found


def _with_products(tokens: list[Token]) -> list[Token]:
    """The tokens with the letters of short units as names of variables."""
    found: list[Token] = []
    for token in tokens:
        found += [Token("name", letter) for letter in token.text] if _may_be_product(token) else [token]
    return found


def _may_be_product(token: Token) -> bool:
    r"""Whether a short unit can be a product of variables: 2km can, and 2 km can't. 2\text{m} can be the product 2m."""
    if token.kind == "text" and len(token.text) == 1:
        return is_unit_letter(token.text)
    return token.kind == "word" and is_product_too(token.text, spaced=token.spaced)


def _closes(tokens: list[Token]) -> int:
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token.kind == "sign") * ((token.text == "{") - (token.text == "}"))
        if depth == 0:
            return i
    return -1


def _is_text(tokens: list[Token]) -> bool:
    """Whether the tokens are words: more than letters that can be variables."""
    kinds = {token.kind for token in tokens}
    if any(token.kind == "command" or (token.kind == "sign" and token.text not in _WORD_SIGNS) for token in tokens):
        return False
    first = tokens[0]
    if "number" in kinds and (first.kind not in ("word", "text") or len(first.text) < 3):
        return False  # June 5 is text, 5 June isn't
    return any(token.kind == "text" or token.kind == "word" for token in tokens)


def _readings_of_text(tokens: list[Token]) -> list[Value]:
    text = Text(" ".join("".join(" " * t.spaced + t.text for t in tokens).lower().split()))
    values: list[Value] = [text]
    if (meant := meaning(text.words)) is not None:
        values.append(meant)
    if all(t.kind != "text" and (t.kind != "word" or _can_be_product(t.text)) for t in tokens):
        with contextlib.suppress(UnreadableError):
            values.append(read_list(tokens))  # xy is a product too
    choice = _choice(tokens)
    return [choice, *values] if choice is not None else values


def _products(tokens: list[Token]) -> list[Value]:
    """The product that words of up to four letters can be, such as `nRT` and `-mgh/2`."""
    if not _is_text(tokens) or any(t.kind == "text" or (t.kind == "word" and len(t.text) > 4) for t in tokens):
        return []
    with contextlib.suppress(UnreadableError):
        return [read_list(tokens)]
    return []


def _can_be_product(word: str) -> bool:
    """Whether plain letters can be a product of variables: no other word has the same letters in another order."""
    return word not in _SMALL_WORDS if len(word) == 2 else len(word) == 3 and list(word) == sorted(word)


def _choice(tokens: list[Token]) -> Choice | None:
    """`A`, `(A)`, `A. 12`, `(A) 12`, `Option A`."""
    while (
        len(tokens) > 1
        and tokens[0].kind in ("word", "text")
        and tokens[0].text.lower() in ("option", "choice", "answer")
    ):
        tokens = tokens[1:]
    texts = [token.text for token in tokens]
    bracketed = texts[:1] == ["("] and texts[2:3] == [")"]
    letter, rest = (tokens[1], tokens[3:]) if bracketed else (tokens[0], tokens[1:])
    if letter.kind == "name":
        letter = replace(letter, text=_BOLD.sub(r"\1", letter.text))
    if letter.kind not in ("name", "text") or len(letter.text) != 1 or letter.text.upper() not in _CHOICES:
        return None
    if not bracketed and rest and rest[0].text in (".", ")", ":"):
        rest = rest[1:]
    elif rest and (not bracketed or rest[0].kind == "join" or rest[0].text in _BETWEEN_CHOICES):
        return None
    if _names_choices(rest):
        return None  # (A) 5, (B) 6
    content: tuple[Value, ...] = ()
    if rest:
        try:
            content = tuple(_read_tokens(rest))
        except UnreadableError:
            content = (Text(" ".join(token.text for token in rest)),)
    if any(isinstance(value, Choice) for value in content):
        return None  # (A)(B)
    return Choice(letter.text.upper(), letter.text.islower(), content)


def _names_choices(tokens: list[Token]) -> bool:
    """Whether the content of a choice has the letter of another one, or says that the choice is wrong."""
    if tokens and tokens[0].kind in ("text", "word") and tokens[0].text.split()[:1] in (["is"], ["isn't"], ["are"]):
        return True
    for i, token in enumerate(tokens):
        if token.kind in ("name", "text") and len(token.text) == 1 and token.text in _CHOICES:
            before, behind = (tokens[j].text if 0 <= j < len(tokens) else "" for j in (i - 1, i + 1))
            separate = i > 0 and (tokens[i - 1].kind == "join" or before in _BETWEEN_CHOICES)
            if (before == "(" and behind == ")" and i > 1) or (separate and behind in (".", ":", ")")):
                return True
    return False


def read_list(tokens: list[Token]) -> Value:
    """A list without brackets, or its only item."""
    for separators in ((";",), (",", "and", "or"), ()):
        parts = split(tokens, separators)
        if len(parts) > 1:
            items: list[Value] = []
            for part in parts:
                value = read_list(part) if separators == (";",) else read_item(part, _read_items)
                items += (
                    value.items if isinstance(value, Group) and not value.opening and separators != (";",) else [value]
                )
            return Group("", "", tuple(items), joined_by(tokens)) if len(items) > 1 else items[0]
    return _assignments(read_item(tokens, _read_items))


def _assignments(value: Value) -> Value:
    r"""`x = \pm 2` as `x = 2, x = -2`."""
    if (
        isinstance(value, Relation)
        and value.name
        and isinstance(value.sides[-1], Group)
        and not value.sides[-1].opening
    ):
        return Group(
            "", "", tuple(Relation(value.signs, (value.sides[0], item), value.name) for item in value.sides[-1].items)
        )
    return value


def _read_items(parts: Parts) -> tuple[Value, ...]:
    items: list[Value] = []
    for part in parts:
        value = _assignments(read_item(part, _read_items))
        items += value.items if isinstance(value, Group) and not value.opening else [value]
    return tuple(items)
