"""The start of a run, in the folder that it has claimed (claim.py)."""

from __future__ import annotations

import json
import uuid
from datetime import date

import yaml

from rloop_lightning.errors import StateError
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.settings import settings_text
from rloop_lightning.run.state import LoopState
from rloop_lightning.system.files import write_text


class RunFolderError(OSError):
    """The run folder can't be written. The message gives the reason and the fix."""


def resume_faults(run: RunFolder) -> list[str]:
    """Why this folder has no run to resume. resume.py checks for other damaged files."""
    try:
        state, _ = run.newest_state()
    except StateError as error:
        return str(error).splitlines()
    if state is not None and (state.settings or run.config.is_file()):
        return []
    needed = run.state.name if state is None else run.config.name
    return [f"--resume {run}: no {needed} there; give the folder of an existing run"]


def begin(folder: RunFolder, settings: str, began: date) -> None:
    """Write the first state, with the settings, and config.yaml to a new run folder.

    Args:
        folder: the run folder.
        settings: all settings, YAML.
        began: today's date.

    Raises:
        RunFolderError: they can't be written. No state is left.
    """
    # As they are in the state file, so that they compare equal.
    values = json.loads(json.dumps(yaml.safe_load(settings), default=str))
    try:
        folder.save_state(LoopState(uuid.uuid4().hex, settings=values, began=began.isoformat()))
        write_text(folder.config, settings_text(values))
    except OSError as error:
        folder.state.unlink(missing_ok=True)
        raise RunFolderError(
            f"can't write {folder.config}: {error.strerror or error}; free disk space, or choose another folder with "
            "--out, and start again"
        ) from error
