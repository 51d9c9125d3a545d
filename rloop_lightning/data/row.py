"""A row of a problem set, and the limits of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_BYTES_IN_A_ROW = 2**24
"""Largest row, 16 MiB. The longest problems of published sets have some 10 kB."""
MOST_DEPTH = 100
"""Deepest nesting of a row. Python's own functions for JSON end at about 1,000, some of them in a crash."""


@dataclass(frozen=True)
class Row:
    """A row and its place: `file.jsonl:3` is line 3, `file.parquet[2]` is the third row."""

    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A place without a readable row, and the reason. The place is empty if the whole set can't be read."""

    place: str
    reason: str
