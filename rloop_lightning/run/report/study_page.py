"""The page of a study: its complete runs, by arm and seed."""

from __future__ import annotations

import logging

from rloop_lightning.run.report.compared import ComparedArms, ComparedRun
from rloop_lightning.run.report.comparison_page import write_comparison_page
from rloop_lightning.run.report.stored import read_run
from rloop_lightning.run.study import Study
from rloop_lightning.system.terminal import cause

_log = logging.getLogger(__name__)


def write_study_page(study: Study) -> bool:
    """Write comparison.html of a study's complete runs. Returns whether it was written; a failure ends nothing."""
    complete = [cell for cell in study.cells if cell.complete]
    if not complete:
        return False
    try:
        runs = [ComparedRun(read_run(cell.run.out), cell.arm.name, cell.seed) for cell in complete]
        waiting = [str(cell) for cell in study.cells if not cell.complete]
        notes = [f"Not complete yet, and left out: {', '.join(waiting)}."] if waiting else []
        write_comparison_page(ComparedArms(runs), study.page, notes)
    except Exception as error:  # the study must go on, whatever is wrong with what it shows
        _log.warning(f"{study.page} was not written: {cause(error)}")
        return False
    return True
