"""The table of a large rehearsal, for docs/reliability.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from chaos.scenarios import Result

BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"
_HEAD = ("injected", "times", "in runs", "runs with the same bits", "files named", "refused, file named", "lost")
_TITLES = {
    "kills": "",
    "damages": "damaged: ",
    "full disks": "",
    "concurrent starts": "",
    "struck workers": "",
}


@dataclass(frozen=True)
class Played:
    """A run that was played.

    Args:
        scenario: its name.
        result: what was injected; None if something was lost.
    """

    scenario: str
    result: Result | None


def table(played: Sequence[Played]) -> str:
    """A row for everything that was injected, and a row for the runs of a scenario in which something was lost."""
    rows: dict[str, list[int]] = defaultdict(lambda: [0] * (len(_HEAD) - 1))
    for one in played:
        if one.result is None:
            rows[f"{one.scenario}, not told apart"][-1] += 1
            continue
        for what, times in one.result.injected.items():
            row = rows[_TITLES[one.scenario] + what]
            for column, value in enumerate((times, 1, not one.result.refused, one.result.named, one.result.refused)):
                row[column] += int(value)
    lines = [_HEAD, ("---", *["--:"] * (len(_HEAD) - 1)), *((what, *map(str, row)) for what, row in rows.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def replaced(document: str, content: str) -> str:
    """A document with other content between its markers."""
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}"
