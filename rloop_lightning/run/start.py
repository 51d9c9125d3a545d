"""The start of a run, in the folder that it has claimed (claim.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rloop_lightning.run.folder import RunFolder
from rloop_lightning.system.files import write_text


class RunFolderError(OSError):
    """The run folder can't be written. The message gives the reason and the fix."""


def resume_faults(run: RunFolder) -> list[str]:
    """Why this folder has no run to resume. resume.py checks for damaged files."""
    if run.config.is_file() and run.states:
        return []
    needed = f"{run.config.name} and {run.state.name}"
    return [f"--resume {run.out}: no {needed} there; give the folder of an existing run"]


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
