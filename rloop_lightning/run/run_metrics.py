"""The logger that writes a phase's metrics to its record and to the run's metrics.csv.

mend(folder, complete, stage)  # drops the rows that the phase repeats
logger = RunMetrics(folder, stage)
Trainer(logger=[logger, ...])
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.metrics_csv import KEYS, Row, read_metrics, row_line, whole_table, write_table
from rloop_lightning.run.phase_records import PhaseRecord
from rloop_lightning.run.state import Stage
from rloop_lightning.system.files import write_tail

# Lightning adds `epoch` to all metrics, but a phase is a single epoch.
_DROPPED = {*KEYS, "epoch"}


class RunMetrics(Logger):
    """Writes a phase's metrics to its record and to the run's table, on rank 0 only.

    Several calls for the same step make one row. Logged metrics are on disk immediately. Each call adds a line to the
    record and writes one row of the table, whatever their length. Only a new metric, which adds a column, rewrites the
    table. The number of a row of the table, from 0, is the step of the run that all other loggers get (loggers.py).

    Args:
        folder: the run folder.
        stage: the phase.
        run_step: the step of the run at step 0 of the phase; `log_metrics` takes steps of the run.

    Raises:
        MetricsError: the table is damaged.
    """

    def __init__(self, folder: RunFolder, stage: Stage, *, run_step: int = 0) -> None:
        super().__init__()
        self._table = folder.metrics
        self._record = PhaseRecord(folder.record(stage))
        self._stage = stage
        self._run_step = run_step
        self._row: Row = {}  # the last row
        self._columns = list(whole_table(self._table).columns)
        self._row_start = 0  # where the last row begins in the table, bytes

    @property
    def name(self) -> str:
        """The name of this kind of logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Round and phase."""
        return f"round-{self._stage.round}-{self._stage.phase}"

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's configuration is in its `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Merge `metrics` into the row of `step`, and write them.

        Args:
            metrics: numbers by name; `epoch` and the table's own keys are left out.
            step: step of the run.
        """
        numbers = {name: _number(value) for name, value in metrics.items() if name not in _DROPPED}
        if not numbers:
            return
        in_phase = 0 if step is None else step - self._run_step
        key = dict(zip(KEYS, (self._stage.round, self._stage.phase, in_phase), strict=True))
        # First, so that a kill in between leaves a table that a resume can complete.
        self._record.append({**key, **numbers})
        if {name: self._row.get(name) for name in KEYS} == key:
            self._row.update(numbers)
        else:
            self._row_start = self._table.stat().st_size if self._table.exists() else 0
            self._row = {**key, **numbers}
        if new := [name for name in self._row if name not in self._columns]:
            self._add_columns(new)
        else:
            # A kill in between leaves the row and the rest of an older, longer one, which readers skip.
            write_tail(self._table, self._row_start, row_line(self._columns, self._row))

    def _add_columns(self, new: Sequence[str]) -> None:
        """Rewrite the table with new columns and the last row, whether or not that row is on disk already."""
        key = [self._row[name] for name in KEYS]
        rows = [row for row in read_metrics(self._table) if [row[name] for name in KEYS] != key]
        self._columns = [*self._columns, *new]
        self._row_start = write_table(self._table, self._columns, [*rows, self._row])


def _number(value: Any) -> int | float:
    return int(value) if isinstance(value, int) else float(value)
