"""Whether a run can live in its folder, before anything is written there; and its first file, the settings."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rloop_lightning.run.folder import RunFolder
from rloop_lightning.system.files import write_text
from rloop_lightning.system.imports import is_unnamed

# What may differ when a run is resumed: it has no part in what the run computes, or changes its rounding alone, as a
# machine with less memory needs it.
_FREE_ON_RESUME = (
    "resume",
    "out",
    "debug",
    "loop.select",
    "loop.checkpoint_every_n_steps",
    "gradient.",
    "trainer.",
    "engine.max_rows",
    "policy.max_tokens_per_micro_batch",
)


class RunFolderError(OSError):
    """The run folder can't be written; says why and how to go on."""


def new_run_faults(folder: RunFolder) -> list[str]:
    """Why a run can't begin in a folder; nothing is left there."""
    out = folder.out
    if folder.state.exists():
        return [f"--out {out} holds a run already; go on with it by --resume {out}, or name another folder"]
    there = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        return [f"--out {out}: {there} is no folder; name another"]
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        return [f"--out {out}: can't write in {there}: {error.strerror}; name another folder"]
    return []


def resume_faults(run: RunFolder) -> list[str]:
    """Why there is no run to go on with; what is damaged in one is for resume.py to find."""
    if run.config.is_file() and run.states:
        return []
    needed = f"{run.config.name} and {run.state.name}"
    return [f"--resume {run.out}: no {needed} there; give the folder of a begun run"]


def changed_settings(run: RunFolder, now: str) -> list[str]:
    """What differs from the settings that a run began with, where it has a part in what the run computes.

    Args:
        run: a begun run.
        now: the present settings, as YAML.
    """
    before = dict(_flat(yaml.safe_load(run.config.read_text(encoding="utf-8"))))
    after = dict(_flat(yaml.safe_load(now)))
    # A Python object that has no import path is given anew, as whatever the user can name.
    unnamed = [name.removesuffix("name") for name, value in before.items() if is_unnamed(value)]
    free = (*_FREE_ON_RESUME, *unnamed)
    return [
        f"--resume: --{key} was {before.get(key)!r} when the run began and is {after.get(key)!r} now; leave it out, or "
        "begin a new run"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(free)
    ]


def begin(folder: RunFolder, settings: str) -> None:
    """Write the settings, as YAML, which makes the folder a run's.

    Raises:
        RunFolderError: it can't be written; folders that were made for it are gone again.
    """
    file = folder.config
    with nothing_half_written(folder.out):
        try:
            write_text(file, settings)
        except OSError as error:
            raise RunFolderError(
                f"can't write {file}: {error.strerror or error}; make room, or name another folder by --out, and begin "
                "again"
            ) from error


@contextmanager
def nothing_half_written(out: Path) -> Iterator[None]:
    """Removes the folders that were made on the way to `out`, as far as they are empty, where the block raises."""
    made = [path for path in (out, *out.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings with dotted keys."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
