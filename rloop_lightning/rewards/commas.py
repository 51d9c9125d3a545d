"""Which commas of an answer group the digits of a number, which is its decimal point, and which separate items."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from rloop_lightning.rewards.tokens import CLOSE, OPEN

_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\S)")
_DECIMAL = re.compile(r"([-+]?\s*\d+),(\d+)(?![\d,.])([^\d,]*)")
_BRACKET_OR_COMMA = re.compile(r"\\[{}]|[()\[\]{},]")


def candidates(text: str) -> list[str]:
    """The text with its commas read as separators of thousands, as a decimal comma, and as separators of a list.

    A comma without a space groups digits if every comma that separates in the same bracket has one: `1,500, 2,500`.
    Where no comma has a space, both readings are possible, but in a bracket all commas separate.
    """
    if "," not in text:
        return [text]
    text = _grouped(text, [level for level in _levels(text)[1:] if _is_spaced(text, level)])
    outside = _levels(text)[0]
    thousands = _grouped(text, [outside])
    if thousands != text:
        return [thousands] if _is_spaced(text, outside) else [thousands, text]
    decimal = _DECIMAL.fullmatch(text)
    return [f"{decimal.group(1)}.{decimal.group(2)}{decimal.group(3)}", text] if decimal else [text]


def without_thousands(text: str) -> str:
    """The text without any comma that can group digits, for what can't be read otherwise: `3(1,000)`."""
    return _THOUSANDS.sub(lambda found: found.group().replace(",", ""), text)


def _levels(text: str) -> list[list[tuple[int, bool]]]:
    """The commas outside brackets, and those in each bracket: their places, and whether they can group digits."""
    inside = {at for found in _THOUSANDS.finditer(text) for at in range(*found.span())}
    levels: list[list[tuple[int, bool]]] = [[]]
    stack = [0]
    for found in _BRACKET_OR_COMMA.finditer(text):
        mark = found.group()
        if mark in OPEN:
            stack.append(len(levels))
            levels.append([])
        elif mark in CLOSE:
            stack = stack[:-1] or [0]
        else:
            levels[stack[-1]].append((found.start(), found.start() in inside))
    return levels


def _is_spaced(text: str, level: Sequence[tuple[int, bool]]) -> bool:
    """Whether there are commas that can't group digits, which separate, and all of them have a space."""
    separators = [at for at, groups in level if not groups]
    return bool(separators) and all(text[at + 1 : at + 2].isspace() for at in separators)


def _grouped(text: str, levels: Sequence[Sequence[tuple[int, bool]]]) -> str:
    """The text without the commas of some levels that can group digits."""
    commas = sorted(at for level in levels for at, groups in level if groups)
    return "".join(text[start + 1 : end] for start, end in pairwise([-1, *commas, len(text)]))
