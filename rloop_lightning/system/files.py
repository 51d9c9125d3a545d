"""Writes of files and folders that appear whole or not at all.

A write that fails raises `WriteError`, which names the file, and the free space if the disk is full. Existing content
stays unchanged.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = ".partial"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None}
"""Errors of a full disk; a library's own error has no number."""


class WriteError(OSError):
    """A file or folder can't be written, because the disk is full or for another reason. Existing content is intact."""

    def __init__(self, path: Path, error: OSError, written: int) -> None:
        reason = error.strerror or str(error)
        room = _room(path, written) if error.errno in _FULL else ""
        super().__init__(error.errno, f"can't write {path}: {reason}{room}")

    def __str__(self) -> str:
        return str(self.args[1])


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds, remove it when it raises.

    Works for files, and for folders that are absent or empty (folders.py replaces others). A kill leaves at most a
    `.partial` file, which is never read and which the next write of the same name replaces.
    """
    with written_beside(path) as partial:
        yield partial
        fsync_tree(partial)
        os.replace(partial, path)
        fsync(path.parent)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and remove it if the block raises.

    Raises:
        WriteError: in place of any other OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + _PARTIAL)
    _remove(partial)
    try:
        yield partial
    except OSError as error:
        failure = error if isinstance(error, WriteError) else WriteError(path, error, _size(partial))
        _remove(partial)
        raise failure from error
    except BaseException:
        _remove(partial)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append(path: Path, content: bytes) -> None:
    """Append `content` to a file, which is created if missing. On an error the file stays unchanged.

    Raises:
        WriteError: it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.touch()
    write_tail(path, path.lstat().st_size, content)
    fsync(path)


def write_tail(path: Path, start: int, content: bytes) -> None:
    """Replace a file's content from byte `start` on with `content`. On an error the file stays unchanged.

    The file is written first and truncated afterwards. A kill in between leaves all of `content`, followed by the rest
    of the old content.

    Raises:
        WriteError: it can't be written; it is a link, for example, which may lead to a file of others.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise WriteError(path, error, 0) from error
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        file.seek(start)
        before = file.read()
        try:
            _write_at(file, start, content)
        except OSError as error:
            _write_at(file, start, before)  # into the space that it occupied before
            raise WriteError(path, error, len(content)) from error


def fsync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Flush a file, or a folder with all that is in it, to disk."""
    for entry in [*path.rglob("*"), path]:
        fsync(entry)


def _write_at(file: io.FileIO, start: int, content: bytes) -> None:
    file.seek(start)
    rest = memoryview(content)
    while rest:  # a nearly full disk may write only a part, without an error
        rest = rest[file.write(rest) :]
    file.truncate()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Size of a file, or of all files in a folder, bytes; 0 if missing."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _room(path: Path, written: int) -> str:
    """The free space for a failed write, as text."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    return (
        f" ({free / 1e6:,.1f} MB are free in {folder}; it needs more than the {written / 1e6:,.1f} MB written so far)"
    )
