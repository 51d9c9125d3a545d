"""Compares metrics.csv with the records of its phases, mends what is damaged, and names what is lost.

    history = mend(folder, complete=stages[:3], current=stages[3])
    history.rows  # [(0, {"round": 0, "phase": "evaluate", "step": 0, ...}), ...]

A row's record has a checksum, so it wins over the table. A row that only the table has is taken from there. Rows of
later phases, and those after the newest checkpoint of the current one, are dropped, because the run repeats them.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.metrics_csv import (
    KEYS,
    MetricsError,
    Row,
    cells,
    read_table,
    result_step,
    table_lines,
    write_table,
)
from rloop_lightning.run.phase_records import PhaseRecord, Recorded, Steps, gaps
from rloop_lightning.run.state import Stage

_log = logging.getLogger(__name__)

_PhaseKey = tuple[int, str]
"""A round and the name of a phase."""

_MOST_NAMED = 3
"""Faults of one file, or ranges of steps, that a message lists."""


@dataclass(frozen=True)
class History:
    """The rows of a run so far.

    Args:
        rows: each with its step of the run.
        steps: number of steps of the run so far, including those whose rows are lost.
    """

    rows: list[tuple[int, Row]]
    steps: int


def mend(folder: RunFolder, complete: Sequence[Stage], current: Stage | None = None) -> History:
    """Bring metrics.csv and the records into agreement, with a warning for each damaged file and for lost rows.

    A run of an older version has no records. They are then made from the table.

    Args:
        folder: the run folder.
        complete: the complete stages, in order.
        current: the stage that begins or resumes.

    Raises:
        MetricsError: metrics.csv is not of this run, which has no rows yet.
        WriteError: a file can't be written.
    """
    table = read_table(folder.metrics)
    by_phase: dict[_PhaseKey, list[Row]] = defaultdict(list)
    for row in table.rows:
        by_phase[row["round"], row["phase"]].append(row)
    parts = [_Part.of(folder, stage, by_phase) for stage in complete]
    if current is not None:
        parts.append(_Part.of(folder, current, by_phase, done=folder.steps_done(current)))
    rows = [row for part in parts for row in part.rows.values()]
    recorded = any(part.record.path.exists() for part in parts)
    if table.fault and folder.metrics.exists() and not rows and not recorded:
        raise MetricsError(f"{folder.metrics} is not of this run ({table.fault}); move it elsewhere")
    deviations = (part.deviation() for part in parts)
    fault = table.fault if any(part.expected for part in parts) or folder.metrics.exists() else ""
    fault = fault or next(filter(None, deviations), "")
    for part in parts:
        if recorded and part.faults:
            _log.warning(
                f"{part.record.path} is damaged ({_listed(part.faults)}); what it lacks is taken from "
                f"{folder.metrics.name}"
            )
        mended = part.mended(table_is_cut=bool(fault))
        if gaps(part.expected, part.rows, part.found.missing) or mended.cut > part.found.cut:
            lost = _named(part.stage, mended)
            _log.warning(f"{folder.metrics} and the record both lost {lost}; the run goes on without these rows")
        if part.faults or not part.is_complete or mended != part.found:
            part.record.replace(mended)
    if fault:
        _log.warning(f"{folder.metrics} is damaged ({fault}); it is written again from the records of the phases")
    _rewrite(folder, () if fault else table.columns, rows)
    return _history(parts)


def complete_record(folder: RunFolder, stage: Stage) -> None:
    """Note in the record of a stage that it is complete."""
    record = PhaseRecord(folder.record(stage))
    found = record.read()
    record.complete(max([*found.rows, *(last for _, last in found.missing)], default=0))


def rows_on_disk(folder: RunFolder) -> int:
    """The number of rows that metrics.csv or a record has."""
    recorded = (row for path in folder.records() for row in PhaseRecord(path).read().rows.values())
    return len({tuple(row[name] for name in KEYS) for row in [*read_table(folder.metrics).rows, *recorded]})


def lost_rows(folder: RunFolder, stages: Iterable[Stage]) -> str:
    """A note on the rows of these stages that were lost; empty if none were."""
    records = {stage: PhaseRecord(folder.record(stage)) for stage in stages}
    found = {stage: record.read() for stage, record in records.items() if record.mentions_losses()}
    lost = [_named(stage, record) for stage, record in found.items() if record.missing or record.cut]
    return f"{folder.metrics.name} lacks rows that were damaged with their record: {'; '.join(lost)}" if lost else ""


@dataclass(frozen=True)
class _Part:
    """One stage's rows, from its record and the table.

    Args:
        stage: the stage.
        record: its record.
        found: what could be read of it.
        tabled: the stage's rows in the table, by step.
        expected: the steps of which rows are kept, as far as it is known.
        is_complete: whether the stage is complete.
    """

    stage: Stage
    record: PhaseRecord
    found: Recorded
    tabled: dict[int, Row]
    expected: range
    is_complete: bool

    @classmethod
    def of(
        cls, folder: RunFolder, stage: Stage, table: Mapping[_PhaseKey, Sequence[Row]], done: int | None = None
    ) -> _Part:
        """Read what there is of a stage.

        Args:
            folder: the run folder.
            stage: the stage.
            table: the rows of metrics.csv that could be read, by phase.
            done: training steps that are not repeated; None if the stage is complete.
        """
        record = PhaseRecord(folder.record(stage))
        found = record.read()
        tabled = {row["step"]: row for row in table.get((stage.round, stage.phase), ()) if _is_of(row, stage)}
        if any(not _is_of(row, stage) for row in found.rows.values()):
            found = Recorded(faults=["its rows are of another phase"])
        if stage.phase == "evaluate":
            step = result_step(stage)
            expected = range(step, step + (done is None))
        elif done is not None:
            expected = range(1, done + 1)
        elif found.end is not None:
            expected = range(1, found.end + 1)
        else:
            ends = [*found.rows, *tabled, *(last for _, last in found.missing)]
            expected = range(1, max(ends, default=0) + 1)
        return cls(stage, record, found, tabled, expected, is_complete=done is None)

    @cached_property
    def rows(self) -> dict[int, Row]:
        """The rows that are kept, by step."""
        rows = {}
        for step in sorted(self.found.rows.keys() | self.tabled.keys()):
            if step in self.expected:
                row, tabled = self.found.rows.get(step, {}), self.tabled.get(step, {})
                # The lost line of a faulty record may have been a part of this row.
                rows[step] = {**tabled, **row} if self.faults or not row else row
        return rows

    @cached_property
    def faults(self) -> list[str]:
        """What is wrong with the record."""
        if not self.record.path.exists():
            return ["the file is missing"] if self.expected else []
        unknown = gaps(self.expected, self.found.rows, self.found.missing)
        no_rows = [f"no row of {_steps(unknown)}"] if unknown else []
        fewer = [
            f"the row of step {step} lacks metrics"
            for step, row in self.found.rows.items()
            if step in self.expected and cells(row).items() < cells(self.tabled.get(step, {})).items()
        ]
        no_end = ["its end is missing"] if self.is_complete and self.found.end is None else []
        return [*self.found.faults, *no_rows, *fewer, *no_end]

    def deviation(self) -> str:
        """How the table's rows differ from the kept ones; empty if they don't."""
        for step, row in self.rows.items():
            where = _named(self.stage, Recorded(missing=[(step, step)]))
            if step not in self.tabled:
                return f"no row of {where}"
            tabled, kept = cells(self.tabled[step]).items(), cells(row).items()
            # A kill may leave what a module logs by itself, after a checkpoint, in the record alone.
            is_newest = not self.is_complete and step == self.expected[-1]
            if tabled != kept and not (is_newest and tabled <= kept):
                return f"the row of {where} differs from its record"
        return ""

    def mended(self, *, table_is_cut: bool) -> Recorded:
        """The content of the mended record.

        Args:
            table_is_cut: the table may have lost the end of the stage too.
        """
        lost = gaps(self.expected, self.rows)
        if not self.is_complete:
            return Recorded(self.rows, missing=lost)
        knows_end = self.found.end is not None or self.stage.phase == "evaluate"
        return Recorded(self.rows, self.expected.stop - 1, self.found.cut or (table_is_cut and not knows_end), lost)


def _is_of(row: Row, stage: Stage) -> bool:
    if (row["round"], row["phase"]) != (stage.round, stage.phase):
        return False
    return stage.phase != "evaluate" or row["step"] == result_step(stage)


def _rewrite(folder: RunFolder, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Write the table, unless it has this content already."""
    names = list(dict.fromkeys([*KEYS, *columns, *(name for row in rows for name in row)]))
    exists = folder.metrics.exists()
    if (exists or rows) and not (exists and folder.metrics.read_bytes() == b"".join(table_lines(names, rows))):
        write_table(folder.metrics, names, rows)


def _history(parts: Iterable[_Part]) -> History:
    rows: list[tuple[int, Row]] = []
    steps = 0
    for part in parts:
        rows += [(steps + step - part.expected.start, row) for step, row in part.rows.items()]
        steps += part.expected.stop - part.expected.start
    return History(rows, steps)


def _named(stage: Stage, lost: Recorded) -> str:
    """The missing rows of a stage in words."""
    if stage.phase == "evaluate":
        return f"the evaluation of {stage.name}"
    what = [_steps(lost.missing)] if lost.missing else []
    what += [f"any after step {lost.end}" if lost.end else "all that it had"] if lost.cut else []
    return f"round {stage.round + 1} {stage.phase} {' and '.join(what)}"


def _steps(ranges: Sequence[Steps]) -> str:
    """Ranges of steps: "steps 3-5, 9"."""
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    is_one = len(ranges) == 1 and ranges[0][0] == ranges[0][1]
    return f"step{'' if is_one else 's'} {', '.join(texts)}"


def _listed(faults: Sequence[str]) -> str:
    more = f"; {len(faults) - _MOST_NAMED} more" if len(faults) > _MOST_NAMED else ""
    return "; ".join(faults[:_MOST_NAMED]) + more
