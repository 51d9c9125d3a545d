"""Tables of a page as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rloop_lightning.evaluation.statistics import Interval
from rloop_lightning.system.markdown import MISSING


@dataclass(frozen=True)
class Cell:
    """A value, and its interval or another remark below it.

    Args:
        text: the value.
        remark: what stands below it in small print.
        kind: `ok` or `bad` for a verdict, else empty.
    """

    text: str
    remark: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Args:
        name: its header.
        cells: the other columns.
        chosen: whether the row is set off.
    """

    name: str
    cells: Sequence[Cell]
    chosen: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        id: of the element on the page.
        caption: what it shows, and over what its intervals are.
        header: titles of the columns.
        lines: the rows.
        text: whether cells are text, set flush left.
        folded: whether it is hidden until a reader opens it.
    """

    id: str
    caption: str
    header: Sequence[str]
    lines: Sequence[Line] = field(default_factory=list)
    text: bool = False
    folded: bool = False


def interval_cell(interval: Interval, *, signed: bool = False) -> Cell:
    """An estimate above its interval; a difference has a sign."""
    form = "+.3f" if signed else ".3f"
    if math.isnan(interval.low):
        return Cell(format(interval.estimate, form), "no interval")
    return Cell(format(interval.estimate, form), f"[{interval.low:{form}}, {interval.high:{form}}]")


def signed(interval: Interval) -> str:
    """A difference with its interval, for a sentence."""
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def number_cell(value: float | None, form: str = ".3f") -> Cell:
    """A number, or a dash if there is none."""
    return Cell(MISSING if value is None or not math.isfinite(value) else format(value, form))


def duration(seconds: float) -> str:
    """A time in words: "8 min 50 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def amount(count: float) -> str:
    """A count in words: "3.03 million"."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,.0f}"
