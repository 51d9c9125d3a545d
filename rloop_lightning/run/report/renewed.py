"""Renews the report of a running run after every phase."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.report.run_page import write_report
from rloop_lightning.run.report.stored import ReportedRun
from rloop_lightning.run.state import LoopState
from rloop_lightning.system.terminal import cause

_log = logging.getLogger(__name__)


def renew_report(folder: RunFolder, parts: Parts, state: LoopState) -> None:
    """Write the report of a run so far. A failure is logged and ends nothing.

    Args:
        folder: the run folder.
        parts: the parts of the run, rendered.
        state: its state.
    """

    def problems(ids: Collection[str]) -> Mapping[str, tuple[str, str]]:
        return {one.id: (one.prompt, " or ".join(one.golds)) for one in parts.problems if one.id in ids}

    try:
        write_report(ReportedRun(folder, state, problems), folder.report)
    except Exception as error:  # the run must go on, whatever is wrong with what it shows
        _log.warning(f"{folder.report.name} was not written: {cause(error)}")
