"""The run's `metrics.csv`: one wide table for the whole run, a row for each (round, phase, step).

    logger = RunMetrics(run / "metrics.csv", round=0, phase="explore")
    Trainer(logger=[logger, ...])
    read_metrics(run / "metrics.csv")  # [{"round": 0, "phase": "explore", "step": 1, "rollout/reward_mean": 0.25, ...}]

Every phase has a logger of its own on the same file, made when the phase before has finished. A row is on disk as
soon as it was logged.
"""

from __future__ import annotations

import csv
import io
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from rloop_lightning.run.state import Stage
from rloop_lightning.system.files import atomic_path, write_tail

_KEYS = ("round", "phase", "step")
# Lightning adds `epoch` to whatever is logged; a phase has no epochs worth a column.
_DROPPED = {*_KEYS, "epoch"}


PASS_AT_K = re.compile(r"eval/(?P<set>[^/]+)/pass@(?P<k>\d+)")
"""What pass@k of an evaluation set is called."""

_RESULT_STEPS = {"base": 0, "explored": 1, "consolidated": 2}


class RunMetrics(Logger):
    """Writes what a phase logs into the run's table; on rank 0 only.

    Metrics logged for the same step in several calls become one row. A metric that is new to the table makes it be
    rewritten once, with a further column; otherwise a call writes one row, whatever the table's length.

    At construction, rows of this phase that the run is about to repeat are dropped, as is what a kill left
    half-written.

    Args:
        path: the table; made when the first metrics are logged.
        round: round of the run, from 0.
        phase: `explore`, `consolidate` or `evaluate`.
        keep_before: rows of this round and phase are kept if their step is below this; 0 keeps none of them.
    """

    def __init__(self, path: Path, round: int, phase: str, keep_before: int = 0) -> None:
        super().__init__()
        self._path = Path(path)
        self._round = round
        self._phase = phase
        self._columns: list[str] = []  # of the file, keys included
        self._row: dict[str, str] = {}  # the last row
        self._row_start = 0  # where the last row begins in the file, bytes
        self._open(keep_before)

    @property
    def name(self) -> str:
        """Of this kind of logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Round and phase."""
        return f"round-{self._round}-{self._phase}"

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's configuration is in its `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Merge `metrics` into the row of `step`, and write the row.

        Args:
            metrics: numbers by name; `epoch` and the table's own keys are left out.
            step: inside the phase.
        """
        cells = {name: _format(value) for name, value in metrics.items() if name not in _DROPPED}
        if not cells:
            return
        key = dict(zip(_KEYS, (str(self._round), self._phase, str(0 if step is None else step)), strict=True))
        if {name: self._row.get(name) for name in _KEYS} == key:
            self._row.update(cells)
        else:
            self._row_start = self._path.stat().st_size if self._path.exists() else 0
            self._row = {**key, **cells}
        if new := [name for name in self._row if name not in self._columns]:
            self._add_columns(new)
        else:
            self._write_row()

    @rank_zero_only
    def _open(self, keep_before: int) -> None:
        if not self._path.exists():
            return
        columns, rows = _read(self._path)
        kept = [
            row
            for row in rows
            if (row["round"], row["phase"]) != (str(self._round), self._phase) or int(row["step"]) < keep_before
        ]
        self._columns = columns
        self._rewrite(kept)

    def _add_columns(self, new: Sequence[str]) -> None:
        """Rewrite the table with further columns and with the last row, which is on disk already or is new."""
        rows = _read(self._path, end=self._row_start)[1] if self._columns else []
        self._columns = [*self._columns, *new]
        self._rewrite([*rows, self._row])

    def _rewrite(self, rows: Iterable[Mapping[str, str]]) -> None:
        lines = [_line(self._columns), *(_line([row.get(name, "") for name in self._columns]) for row in rows)]
        with atomic_path(self._path) as partial:
            partial.write_bytes(b"".join(lines))
        self._row_start = sum(map(len, lines[:-1]))

    def _write_row(self) -> None:
        """Write the last row over itself, or at the end of the table.

        A kill in the midst of that leaves the row and a rest with too few cells, which no reader takes for a row; an
        error leaves what was there. So no row that was logged is ever lost.
        """
        write_tail(self._path, self._row_start, _line([self._row.get(name, "") for name in self._columns]))


def drop_rows(path: Path, unwanted: Callable[[int, str, int], bool]) -> None:
    """Drop the rows whose (round, phase, step) is `unwanted`."""
    if not path.exists():
        return
    columns, rows = _read(path)
    kept = [row for row in rows if not unwanted(int(row["round"]), row["phase"], int(row["step"]))]
    if len(kept) < len(rows):
        lines = [_line(columns), *(_line([row[name] for name in columns]) for row in kept)]
        with atomic_path(path) as partial:
            partial.write_bytes(b"".join(lines))


def column(path: Path, round: int, phase: str, name: str) -> list[float]:
    """The values of a metric in the rows of one phase that have it."""
    rows = read_metrics(path)
    return [row[name] for row in rows if (row["round"], row["phase"]) == (round, phase) and name in row]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The table's rows in the order they were first logged; empty cells are left out, numbers are parsed.

    Rows of the same round, phase and step are merged, the later value before the earlier. A half-written row is left
    out. A table that does not exist has no rows.
    """
    if not Path(path).exists():
        return []
    merged: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in _read(Path(path))[1]:
        parsed = {name: _parse(name, value) for name, value in row.items() if value}
        merged.setdefault(tuple(row[name] for name in _KEYS), {}).update(parsed)
    return list(merged.values())


def result_step(stage: Stage) -> int:
    """The step under which metrics.csv holds the evaluation of a policy."""
    return _RESULT_STEPS[stage.which]


def _read(path: Path, end: int | None = None) -> tuple[list[str], list[dict[str, str]]]:
    """Header and whole rows as text, of the file's first `end` bytes."""
    content = path.read_bytes()[:end]
    whole = content[: content.rfind(b"\n") + 1].decode()  # behind the last line break is what a kill left
    columns, *rows = csv.reader(io.StringIO(whole, newline="")) if whole else [[]]
    return columns, [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def _line(cells: Sequence[str]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()


def _format(value: float) -> str:
    return str(int(value)) if isinstance(value, int) else repr(float(value))


def _parse(name: str, value: str) -> int | float | str:
    if name == "phase":
        return value
    try:
        return int(value)
    except ValueError:
        return float(value)
