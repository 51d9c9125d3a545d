"""Reads gold answers from the values of fields: text, numbers, and lists of these.

    golds = read_golds(row["answer"], extract, lists="alternatives")
    golds.texts                                # several if they are alternatives

What has no reading is refused by name: booleans, structs, lists in lists, numbers that are not finite, and a list of
different answers where nobody says whether they are parts or alternatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rloop_lightning.data.presets import MOST_DIGITS, Extract, Lists, gold_text


@dataclass(frozen=True)
class Golds:
    """The gold answers of a problem.

    Args:
        texts: all of them; any one is right. Empty if none can be read.
        fault: why none can be read, in a few words; empty if the field has no text that can be one.
        listed: whether the field held a list of several answers.
    """

    texts: tuple[str, ...]
    fault: str = ""
    listed: bool = False


def read_golds(value: Any, extract: Extract, lists: Lists | None) -> Golds:
    """The gold answers in a field's value.

    Args:
        value: the value.
        extract: extracts the answer from a text.
        lists: what a list of answers is; None refuses a list of different answers.
    """
    if not isinstance(value, (list, tuple)):
        text = gold_text(value, extract)
        return Golds(()) if text is None and isinstance(value, str) else _one(text, _named(value))
    if not value:
        return Golds((), "an empty list")
    nested = next((item for item in value if isinstance(item, (list, tuple, Mapping))), None)
    if nested is not None:
        return Golds((), f"{_named(nested)} in a list")
    texts = [gold_text(item, extract) for item in value]
    if None in texts:
        return Golds((), f"item {texts.index(None) + 1} of the list, {_named(value[texts.index(None)])}")
    found = tuple(dict.fromkeys(text for text in texts if text is not None))
    if len(found) == 1:
        return Golds(found)
    if lists is None:
        return Golds((), f"a list of {len(found)}", True)
    return Golds(found if lists == "alternatives" else (_joined(found),), "", True)


def _one(text: str | None, name: str) -> Golds:
    return Golds((), name) if text is None else Golds((text,))


def _joined(texts: tuple[str, ...]) -> str:
    """One answer of several parts."""
    return ("; " if any("," in text for text in texts) else ", ").join(texts)


def _named(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, (float, Decimal)):
        return f"the number {value}"
    if isinstance(value, int):
        return f"an integer of more than {MOST_DIGITS:,} digits"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Mapping):
        return "a struct"
    return "a text without an answer" if isinstance(value, str) else f"a {type(value).__name__}"
