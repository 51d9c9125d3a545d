"""The run's `metrics.csv`: one wide table for the whole run, with one row per (round, phase, step).

    read_metrics(run / "metrics.csv")  # [{"round": 0, "phase": "explore", "step": 1, "rollout/reward_mean": 0.25, ...}]

Each row comes from the record of its phase (phase_records.py). run_metrics.py writes both, and mending.py rebuilds a
damaged table from the records.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rloop_lightning.errors import DamagedError
from rloop_lightning.run.state import Stage
from rloop_lightning.system.files import atomic_path
from rloop_lightning.system.terminal import one_line

Row = dict[str, Any]
"""`round`, `phase` and `step`, and the metrics by name."""

KEYS = ("round", "phase", "step")
PHASES = ("explore", "consolidate", "evaluate")

PASS_AT_K = re.compile(r"eval/(?P<set>.+)/pass@(?P<k>\d+)", re.DOTALL)
"""The metric name of pass@k on an evaluation set."""

_RESULT_STEPS = {"base": 0, "explored": 1, "consolidated": 2}


class MetricsError(DamagedError, ValueError):
    """A file is not the metrics table of a run, or is damaged. The message names the file and the line."""


@dataclass(frozen=True)
class Table:
    """What can be read of a table.

    Args:
        columns: the names in its header, keys first.
        rows: its rows, each without empty cells. Rows of the same key are merged; later values override earlier ones.
        fault: what is wrong with it, with the line; empty if nothing is. Rows of faulty lines are left out.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    fault: str = ""


def read_metrics(path: Path) -> list[Row]:
    """The table's rows in the order they were first logged. A missing table has no rows.

    A half-written last row, which a kill leaves, is skipped.

    Raises:
        MetricsError: the file is damaged, or not a table of a run.
    """
    return list(whole_table(path).rows)


def column(path: Path, round: int, phase: str, name: str) -> list[float]:
    """The values of a metric in the rows of one phase that have it."""
    rows = read_metrics(path)
    return [row[name] for row in rows if (row["round"], row["phase"]) == (round, phase) and name in row]


def result_step(stage: Stage) -> int:
    """The step of a policy's evaluation in metrics.csv."""
    return _RESULT_STEPS[stage.which]


def whole_table(path: Path) -> Table:
    """A table without a fault; see `read_metrics`."""
    table = read_table(path) if path.exists() else Table()
    if table.fault:
        raise MetricsError(f"{path} is damaged, or not the metrics.csv of a run: {table.fault}")
    return table


def read_table(path: Path) -> Table:
    """What can be read of a table, whatever its damage."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Table(fault="the file is missing")
    except OSError as error:
        return Table(fault=error.strerror or str(error))
    whole = content[: content.rfind(b"\n") + 1]  # a kill may leave a partial row after the last line break
    reader = csv.reader(io.StringIO(whole.decode(errors="replace"), newline=""))
    try:
        columns = next(reader, [])
        if wrong := _header_fault(columns):
            return Table(fault=f"line 1: {wrong}")
        return _rows(columns, reader)
    except csv.Error as error:
        return Table(fault=f"line {reader.line_num}: {error}")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a table, atomically. Returns the byte at which its last row begins."""
    lines = table_lines(columns, rows)
    with atomic_path(path) as partial:
        partial.write_bytes(b"".join(lines))
    return sum(map(len, lines[:-1]))


def table_lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[bytes]:
    """The lines of a table, the header first."""
    return [_line(columns), *(row_line(columns, row) for row in rows)]


def row_line(columns: Sequence[str], row: Mapping[str, Any]) -> bytes:
    """The line of a row. Numbers keep every digit."""
    texts = cells(row)
    return _line([texts.get(name, "") for name in columns])


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """A row's values as they are in the file, by column."""
    return {name: repr(value) if isinstance(value, float) else str(value) for name, value in row.items()}


def _header_fault(columns: Sequence[str]) -> str:
    if not columns:
        return "there is no header"
    if tuple(columns[: len(KEYS)]) != KEYS:
        return f"the columns don't begin with {', '.join(KEYS)}, but with {one_line(', '.join(columns[:3]))}"
    bad = next((name for name in columns if not name or "\0" in name or "\ufffd" in name), None)
    if bad is not None:
        return f"{bad!r} is not the name of a column"
    twice = next((name for name in columns if columns.count(name) > 1), None)
    return "" if twice is None else f"there are two columns {one_line(twice)}"


def _rows(columns: Sequence[str], lines: Any) -> Table:
    """The rows after the header.

    Args:
        columns: the header.
        lines: a csv reader of the lines after it.
    """
    merged: dict[tuple[Any, ...], Row] = {}
    faults: list[str] = []
    short = ""  # of the last line
    for cells in lines:
        if short:
            faults.append(short)
        short = ""
        where = f"line {lines.line_num}"
        if len(cells) < len(columns):
            short = f"{where}: {len(cells)} cells, for {len(columns)} columns"
            continue
        try:
            row = _parsed(columns, cells)
        except ValueError as error:
            faults.append(f"{where}: {error}")
            continue
        merged.setdefault(tuple(row[name] for name in KEYS), {}).update(row)
    # A short last line is what a kill leaves between the write of a shorter row and the cut behind it.
    return Table(tuple(columns), tuple(merged.values()), faults[0] if faults else "")


def _parsed(columns: Sequence[str], cells: Sequence[str]) -> Row:
    """A row's numbers, without empty cells.

    Raises:
        ValueError: says which cell is wrong.
    """
    if len(cells) > len(columns):
        raise ValueError(f"{len(cells)} cells, for {len(columns)} columns")
    row = {name: _value(name, text) for name, text in zip(columns, cells, strict=True) if text}
    for name in KEYS:
        known = row.get(name) in PHASES if name == "phase" else isinstance(row.get(name), int)
        if not known:
            raise ValueError(f"{one_line(str(row.get(name, '')))!r} is not a {name}")
    return row


def _value(name: str, text: str) -> int | float | str:
    if name == "phase":
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{one_line(text)!r} in the column {one_line(name)} is not a number") from None


def _line(cells: Sequence[str]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()
