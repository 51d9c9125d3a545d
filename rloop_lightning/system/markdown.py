"""Text of others inside Markdown, where nothing of it may act as Markdown or HTML.

code("a`b")            a code span, for names
escaped("a|b <i>")     plain text, also inside a table
fenced("x: 1", "yaml") a block of code
table(["a"], [["1"]])  a table that also reads well as plain text
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rloop_lightning.system.terminal import one_line, printable

MISSING = "–"  # noqa: RUF001 - an en dash is what a table shows where there is nothing
_ACTIVE = re.compile(r"[\\`*\[\]<>|&~]|:(?=//)|(?<=www)\.", re.IGNORECASE)  # the last two would make links of addresses


def code(text: str, *, limit: int = 200) -> str:
    """The text as a code span, on one line, also inside a table."""
    shown = one_line(text, limit=limit).replace("|", "\\|") or " "
    ticks = "`" * (_longest_run(shown) + 1)
    return f"{ticks} {shown} {ticks}" if shown.startswith("`") or shown.endswith("`") else f"{ticks}{shown}{ticks}"


def escaped(text: str, *, limit: int = 1000) -> str:
    """The text on one line, with a backslash before each character that Markdown or HTML would interpret."""
    return _ACTIVE.sub(r"\\\g<0>", one_line(text, limit=limit))


def fenced(text: str, language: str) -> str:
    """The text as a block of code that it can't end."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{printable(text).rstrip()}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is aligned to the left, and all others to the right. Cells are taken as they are."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        others = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return "| " + " | ".join([row[0].ljust(widths[0]), *others]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(map(line, [header, rule, *rows]))


def _longest_run(text: str) -> int:
    """The length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
