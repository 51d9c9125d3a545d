"""The start of a run: checks its folder before anything is written there, then writes its settings."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import yaml

from rloop_lightning.errors import StateError
from rloop_lightning.run.folder import RunFolder, settings_text
from rloop_lightning.run.state import LoopState
from rloop_lightning.system.files import write_text


class RunFolderError(OSError):
    """The run folder can't be written. The message gives the reason and the fix."""


def new_run_faults(folder: RunFolder) -> list[str]:
    """Why a new run can't start in this folder. The check leaves no files."""
    out = folder.out
    if folder.state.exists():
        return [f"--out {out} already contains a run; resume it with --resume {out}, or choose another folder"]
    there = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        return [f"--out {out}: {there} is not a folder; choose another"]
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        return [f"--out {out}: can't write in {there}: {error.strerror}; choose another folder"]
    return []


def resume_faults(run: RunFolder) -> list[str]:
    """Why this folder has no run to resume. resume.py checks for other damaged files."""
    try:
        state, _ = run.newest_state()
    except StateError as error:
        return str(error).splitlines()
    if state is not None and (state.settings or run.config.is_file()):
        return []
    needed = run.state.name if state is None else run.config.name
    return [f"--resume {run.out}: no {needed} there; give the folder of an existing run"]


def begin(folder: RunFolder, settings: str, began: date) -> None:
    """Write the first state, with the settings, and config.yaml to a new run folder.

    Args:
        folder: the run folder.
        settings: all settings, YAML.
        began: today's date.

    Raises:
        RunFolderError: they can't be written. No files are left.
    """
    # As they are in the state file, so that they compare equal.
    values = json.loads(json.dumps(yaml.safe_load(settings), default=str))
    with nothing_half_written(folder.out):
        try:
            folder.save_state(LoopState(uuid.uuid4().hex, settings=values, began=began.isoformat()))
            write_text(folder.config, settings_text(values))
        except OSError as error:
            folder.state.unlink(missing_ok=True)
            raise RunFolderError(
                f"can't write the settings to {folder.out}: {error.strerror or error}; free disk space, or choose "
                "another folder with --out, and start again"
            ) from error


@contextmanager
def nothing_half_written(out: Path) -> Iterator[None]:
    """If the block raises, remove `out` and its parents, as far as they are new and empty."""
    made = [path for path in (out, *out.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise
