"""The table of a large rehearsal, for docs/reliability.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from chaos.scenarios import Result

BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"
_HEAD = ("injected", "times", "runs", "same bits", "named", "refused", "lost")


@dataclass(frozen=True)
class Played:
    """A run that was played.

    Args:
        scenario: its name.
        result: what was injected and said.
        lost: whether something was lost.
    """

    scenario: str
    result: Result
    lost: bool


def table(played: Sequence[Played]) -> str:
    """A row for everything that was injected."""
    rows: dict[str, list[int]] = defaultdict(lambda: [0] * (len(_HEAD) - 1))
    for one in played:
        result = one.result
        same = not (one.lost or result.refused)
        for what, times in result.injected.items():
            row = rows[f"damaged: {what}" if one.scenario == "damages" else what]
            for column, value in enumerate((times, 1, same, result.named, result.refused, one.lost)):
                row[column] += value
    lines = [_HEAD, ("---", *["--:"] * (len(_HEAD) - 1)), *((what, *map(str, row)) for what, row in rows.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def replaced(document: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """A document with other content between its markers."""
    before, rest = document.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
