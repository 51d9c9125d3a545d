"""The start of a run: checks its folder before anything is written there, then writes its settings."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from rloop_lightning.run.folder import RunFolder, flat
from rloop_lightning.system.files import write_text
from rloop_lightning.system.imports import is_unnamed

# Settings that may change on resume. They do not affect the results, or only their rounding, for a machine with less
# memory.
_FREE_ON_RESUME = (
    "resume",
    "out",
    "debug",
    "loop.select",
    "loop.keep_policies",
    "loop.checkpoint_every_n_steps",
    "gradient.",
    "trainer.",
    "engine.max_rows",
    "policy.max_tokens_per_micro_batch",
)


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
    """Why this folder has no run to resume. resume.py checks for damaged files."""
    if run.config.is_file() and run.states:
        return []
    needed = f"{run.config.name} and {run.state.name}"
    return [f"--resume {run.out}: no {needed} there; give the folder of an existing run"]


def changed_settings(run: RunFolder, now: str) -> list[str]:
    """Settings that affect the results and differ from those the run started with, one message each.

    Args:
        run: an existing run.
        now: the current settings, as YAML.
    """
    before = run.settings()
    after = dict(flat(yaml.safe_load(now)))
    # The user passes a Python object without an import path again, in any form.
    unnamed = [name.removesuffix("name") for name, value in before.items() if is_unnamed(value)]
    free = (*_FREE_ON_RESUME, *unnamed)
    return [
        f"--resume: --{key} was {before.get(key)!r} when the run started and is {after.get(key)!r} now; leave it out, "
        "or start a new run"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(free)
    ]


def begin(folder: RunFolder, settings: str) -> None:
    """Write the settings (YAML) to a new run folder.

    Raises:
        RunFolderError: they can't be written. Folders created for them are removed.
    """
    file = folder.config
    with nothing_half_written(folder.out):
        try:
            write_text(file, settings)
        except OSError as error:
            raise RunFolderError(
                f"can't write {file}: {error.strerror or error}; free disk space, or choose another folder with --out, "
                "and start again"
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
