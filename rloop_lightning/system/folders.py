"""Folders with checksums of their own files: written whole, and replaced or removed without touching other files.

    with write_folder(run / "final") as partial:        # a temporary folder beside it
        save_model(partial)
    remove_folder(run / "round-0" / "policy")

A folder's own files are those that its `_SHA256SUMS` names (checksums.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rloop_lightning.system.checksums import SUMS, checksums, write_checksums
from rloop_lightning.system.files import WriteError, fsync, fsync_tree, written_beside


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; when the block succeeds, its files with their checksums become those of `folder`.

    A new folder appears whole or not at all. In an existing one, the files are replaced one by one, its own files that
    the new version lacks are removed, and other files stay. A kill in between leaves a folder that counts as damaged.

    Raises:
        WriteError: the folder can't be written. It is unchanged, unless an existing one was being replaced.
    """
    with written_beside(folder) as partial:
        yield partial
        write_checksums(partial)
        fsync_tree(partial)
        if folder.is_symlink():  # a run writes to its own folder alone
            raise WriteError(folder, OSError(errno.ELOOP, "it is a link; put a folder in its place"), 0)
        if folder.is_dir():
            _replace_files(partial, folder)
        else:
            os.replace(partial, folder)
        fsync(folder.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder's own files, and the folder if it is empty then. After a kill, the next call removes the rest.

    A link to a folder is left alone.
    """
    if folder.is_symlink():
        return
    for name in _own_files(folder):
        _remove_file(folder, name)
    (folder / SUMS).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds other files, or is missing
        folder.rmdir()


def _replace_files(new: Path, folder: Path) -> None:
    names = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()} - {SUMS}
    for name in _own_files(folder) - names:
        _remove_file(folder, name)
    (folder / SUMS).unlink(missing_ok=True)  # the folder counts as damaged until the new one is there
    fsync(folder)
    for name in sorted(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, folder / name)
    fsync_tree(folder)
    os.replace(new / SUMS, folder / SUMS)
    fsync(folder)
    shutil.rmtree(new)


def _own_files(folder: Path) -> set[str]:
    """The existing files in the folder's checksums, but for those that lead out of it, which no run writes."""
    existing = {name for name in checksums(folder) if (folder / name).is_file()}
    return {name for name in existing if (folder / name).parent.resolve().is_relative_to(folder.resolve())}


def _remove_file(folder: Path, name: str) -> None:
    """Remove a file, and its subfolders that are empty then."""
    (folder / name).unlink(missing_ok=True)
    for parent in (folder / name).parents:
        if parent == folder:
            return
        with contextlib.suppress(OSError):
            parent.rmdir()
