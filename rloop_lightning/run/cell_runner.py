"""Runs the cells of a study that are not complete, some at a time.

A cell is complete when its run is, so a study that was killed goes on where it was: complete cells stay, a cell that
was cut resumes, and the others begin. A cell that fails does not stop the others.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rloop_lightning.run.cells import CellProcess, Launch
from rloop_lightning.run.study import Cell, Study
from rloop_lightning.system.lock import FolderLock, LockedError
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.system.terminal import one_line

_PAUSE_S = 0.2


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Args:
        cell: the cell.
        kind: `complete`, `failed`, `submitted`, if a launcher has ended before the cell did, or `waiting`, for the
            tokens of one that was submitted.
        reason: why it failed or waits.
    """

    cell: Cell
    kind: Literal["complete", "failed", "submitted", "waiting"]
    reason: str = ""


class CellRunner:
    """Runs cells.

    Args:
        study: the study.
        launch: how cells are started.
        jobs: cells at a time.
        tell: takes a line on what begins and ends.
        ended: called after a cell has ended.
    """

    def __init__(
        self,
        study: Study,
        launch: Launch,
        jobs: int,
        *,
        tell: Callable[[str], object],
        ended: Callable[[Outcome], object],
    ) -> None:
        self.study = study
        self.launch = launch
        self.jobs = jobs
        self._tell = tell
        self._ended = ended
        self._waiting = [cell for cell in study.cells if not cell.complete]
        self._running: list[CellProcess] = []
        self._outcomes: list[Outcome] = []
        self._told_of: set[str] = set()
        self._stopping = False

    def run(self, signals: StopSignals) -> Sequence[Outcome]:
        """Run the cells, and return what became of those that were not complete.

        Raises:
            Stopped: a signal has come. The cells that ran have saved their training step.
        """
        try:
            with signals.deferred():
                while self._waiting or self._running:
                    if not signals.noted:
                        self._start_next()
                    elif not self._stopping:
                        self._stopping = True
                        self._waiting = []
                        self._stop()
                    self._collect()
                    time.sleep(_PAUSE_S)
                signals.check()
        finally:
            self._stop()
            for process in self._running:
                process.wait()
        return self._outcomes

    def _start_next(self) -> None:
        while len(self._running) < self.jobs and (cell := self._next()) is not None:
            begun = cell.state() is not None
            number = self.study.cells.index(cell) + 1
            settings, options = self.study.settings_file(cell.arm), self.study.options(cell)
            self._waiting.remove(cell)
            try:
                self._running.append(CellProcess(cell, self.launch, settings, options))
            except OSError as error:  # of this cell's files, or of the launcher
                self._note(Outcome(cell, "failed", one_line(str(error), limit=300)))
                continue
            what = "goes on" if begun else "begins"
            self._tell(f"[{number}/{len(self.study.cells)}] {cell} {what}; log: {cell.log}")

    def _next(self) -> Cell | None:
        """The next cell that can start. A folder in use is another study's, or that of one that was killed."""
        for cell in list(self._waiting):
            reference = self.study.reference(cell)
            if reference is not None and not reference.complete:
                self._give_up(cell, reference)
                continue
            try:
                FolderLock(cell.run.lock).check()
            except LockedError as error:
                if str(cell) not in self._told_of:
                    self._told_of.add(str(cell))
                    self._tell(f"{cell}: {error}; it goes on once that process has ended")
                continue
            return cell
        return None

    def _give_up(self, cell: Cell, reference: Cell) -> None:
        """Leave a cell out if the one that its budget is taken from has failed or was only submitted."""
        kinds = {outcome.kind for outcome in self._outcomes if str(outcome.cell) == str(reference)}
        if not kinds:
            return
        self._waiting.remove(cell)
        budget = f"its budget is the tokens of {reference}"
        if "submitted" in kinds:
            self._note(Outcome(cell, "waiting", f"{budget}, which was submitted"))
        else:
            self._note(Outcome(cell, "failed", f"{budget}, which is not complete"))

    def _collect(self) -> None:
        """Note the cells that have ended, also those that another process has completed."""
        for process in list(self._running):
            if (code := process.ended()) is not None:
                self._running.remove(process)
                outcome = self._outcome(process, code)
                if outcome.kind == "complete" or not self._stopping:
                    self._note(outcome)
        for cell in [cell for cell in self._waiting if str(cell) in self._told_of and cell.complete]:
            self._waiting.remove(cell)
            self._note(Outcome(cell, "complete"))

    def _outcome(self, process: CellProcess, code: int) -> Outcome:
        if process.cell.complete:
            return Outcome(process.cell, "complete")
        if code == 0:
            return Outcome(process.cell, "submitted")
        how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        return Outcome(process.cell, "failed", f"{how}: {process.complaint()}")

    def _note(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._ended(outcome)

    def _stop(self) -> None:
        for process in self._running:
            process.stop()
