"""The table of docs/reliability.md: what a large rehearsal writes there."""

from __future__ import annotations

from collections import Counter

from chaos.scenarios import Result
from chaos.table import BEGIN, END, Played, replaced, table


def test_rows_count_faults_runs_and_losses() -> None:
    played = [
        Played("kills", Result(Counter({"clock": 2, "write": 1})), lost=False),
        Played("kills", Result(Counter({"clock": 1})), lost=True),
        Played("damages", Result(Counter({"a policy": 1}), named=1), lost=False),
        Played("damages", Result(Counter({"the state": 1}), named=1, refused=True), lost=False),
    ]
    assert table(played).splitlines()[2:] == [
        "| clock | 3 | 2 | 1 | 0 | 0 | 1 |",
        "| write | 1 | 1 | 1 | 0 | 0 | 0 |",
        "| damaged: a policy | 1 | 1 | 1 | 1 | 0 | 0 |",
        "| damaged: the state | 1 | 1 | 0 | 1 | 1 | 0 |",
    ]


def test_the_table_stands_between_its_markers() -> None:
    first = replaced(f"before\n{BEGIN}\nold\n{END}\nafter\n", "new")
    assert first == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert replaced(first, "newer") == f"before\n{BEGIN}\nnewer\n{END}\nafter\n"
