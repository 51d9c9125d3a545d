"""The run's `metrics.csv`: one wide table for the whole run, with one row per (round, phase, step).

    logger = RunMetrics(run / "metrics.csv", round=0, phase="explore")
    Trainer(logger=[logger, ...])
    read_metrics(run / "metrics.csv")  # [{"round": 0, "phase": "explore", "step": 1, "rollout/reward_mean": 0.25, ...}]

Each phase has its own logger on the same file, made after the previous phase has finished. A logged row is on disk
immediately. The number of a row, from 0, is the step of the run that all other loggers get (loggers.py).
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
# Lightning adds `epoch` to all metrics, but a phase is a single epoch.
_DROPPED = {*_KEYS, "epoch"}


PASS_AT_K = re.compile(r"eval/(?P<set>.+)/pass@(?P<k>\d+)", re.DOTALL)
"""The metric name of pass@k on an evaluation set."""

_RESULT_STEPS = {"base": 0, "explored": 1, "consolidated": 2}


class RunMetrics(Logger):
    """Writes a phase's metrics to the run's table, on rank 0 only.

    Several calls for the same step make one row. A new metric adds a column, which rewrites the table once. Any other
    call writes one row, whatever the table's length.

    The constructor drops this phase's rows that the run is about to repeat, and any half-written row that a kill left.

    Args:
        path: the table; created when the first metrics are logged.
        round: round of the run, from 0.
        phase: `explore`, `consolidate` or `evaluate`.
        keep_before: rows of this round and phase are kept if their step is below this; 0 keeps none of them.
        run_step: the step of the run at step 0 of the phase; `log_metrics` takes steps of the run.
    """

    def __init__(self, path: Path, round: int, phase: str, keep_before: int = 0, *, run_step: int = 0) -> None:
        super().__init__()
        self._path = Path(path)
        self._round = round
        self._phase = phase
        self._run_step = run_step
        self._columns: list[str] = []  # of the file, keys included
        self._row: dict[str, str] = {}  # the last row
        self._row_start = 0  # where the last row begins in the file, bytes
        self._open(keep_before)

    @property
    def name(self) -> str:
        """The name of this kind of logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Round and phase."""
        return f"round-{self._round}-{self._phase}"

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's configuration is in its `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Merge `metrics` into the row of `step`, and write the row.

        Args:
            metrics: numbers by name; `epoch` and the table's own keys are left out.
            step: step of the run.
        """
        cells = {name: _format(value) for name, value in metrics.items() if name not in _DROPPED}
        if not cells:
            return
        in_phase = 0 if step is None else step - self._run_step
        key = dict(zip(_KEYS, (str(self._round), self._phase, str(in_phase)), strict=True))
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
        kept = [row for row in rows if _stays(row, self._round, self._phase, keep_before)]
        self._columns = columns
        self._rewrite(kept)

    def _add_columns(self, new: Sequence[str]) -> None:
        """Rewrite the table with new columns and the last row, whether or not that row is on disk already."""
        rows = _read(self._path, end=self._row_start)[1] if self._columns else []
        self._columns = [*self._columns, *new]
        self._rewrite([*rows, self._row])

    def _rewrite(self, rows: Iterable[Mapping[str, str]]) -> None:
        lines = [_line(self._columns), *(_line([row.get(name, "") for name in self._columns]) for row in rows)]
        with atomic_path(self._path) as partial:
            partial.write_bytes(b"".join(lines))
        self._row_start = sum(map(len, lines[:-1]))

    def _write_row(self) -> None:
        """Overwrite the last row, or append it to the table.

        A kill in between leaves the row and a remainder with too few cells, which readers skip. An error leaves the old
        content. So no logged row is ever lost.
        """
        write_tail(self._path, self._row_start, _line([self._row.get(name, "") for name in self._columns]))


def rows_kept(path: Path, round: int, phase: str, keep_before: int) -> int:
    """The number of rows that `RunMetrics` with these arguments leaves in the table."""
    return sum(_stays(row, round, phase, keep_before) for row in read_metrics(path))


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
    """The table's rows in the order they were first logged, with parsed numbers and without empty cells.

    Rows of the same round, phase and step are merged; later values override earlier ones. A half-written row is
    skipped. A missing table has no rows.
    """
    if not Path(path).exists():
        return []
    merged: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in _read(Path(path))[1]:
        parsed = {name: _parse(name, value) for name, value in row.items() if value}
        merged.setdefault(tuple(row[name] for name in _KEYS), {}).update(parsed)
    return list(merged.values())


def result_step(stage: Stage) -> int:
    """The step of a policy's evaluation in metrics.csv."""
    return _RESULT_STEPS[stage.which]


def _stays(row: Mapping[str, Any], round: int, phase: str, keep_before: int) -> bool:
    return (int(row["round"]), row["phase"]) != (round, phase) or int(row["step"]) < keep_before


def _read(path: Path, end: int | None = None) -> tuple[list[str], list[dict[str, str]]]:
    """Header and complete rows as text, from the file's first `end` bytes."""
    content = path.read_bytes()[:end]
    whole = content[: content.rfind(b"\n") + 1].decode()  # a kill may leave a partial row after the last line break
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
