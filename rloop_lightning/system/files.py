"""Files and folders that appear whole or not at all.

A write that fails raises `WriteError`, which names the file and says how much room there is; what was there stays.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = ".partial"


class WriteError(OSError):
    """A file or a folder can't be written, for want of room or otherwise; what was there before is still there."""

    def __init__(self, path: Path, error: OSError, written: int) -> None:
        reason = error.strerror or str(error)
        super().__init__(error.errno, f"can't write {path}: {reason}{_room(path, written)}")

    def __str__(self) -> str:
        return str(self.args[1])


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well, removed when it raises.

    Works for a file or a folder. A kill leaves at most a `.partial` leftover, which nobody reads and the next write
    of the same name replaces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + _PARTIAL)
    _remove(partial)
    try:
        yield partial
        for entry in [*partial.rglob("*"), partial]:
            _fsync(entry)
        if partial.is_dir():
            _remove(path)  # a folder can't be renamed over one that holds files
        os.replace(partial, path)
        _fsync(path.parent)
    except OSError as error:
        failure = error if isinstance(error, WriteError) else WriteError(path, error, _size(partial))
        _remove(partial)
        raise failure from error
    except BaseException:
        _remove(partial)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append(path: Path, content: bytes) -> None:
    """Add `content` to the end of a file, which is made if need be; on an error the file is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    write_tail(path, path.stat().st_size, content)
    _fsync(path)


def write_tail(path: Path, start: int, content: bytes) -> None:
    """Make `content` what a file holds from byte `start` on; on an error the file is as it was.

    Written first and cut off after: a kill in between leaves all of `content`, with a rest of what was there behind it.
    """
    with path.open("r+b", buffering=0) as file:
        file.seek(start)
        before = file.read()
        try:
            _write_at(file, start, content)
        except OSError as error:
            _write_at(file, start, before)  # into the room that it had
            raise WriteError(path, error, len(content)) from error


def _write_at(file: io.FileIO, start: int, content: bytes) -> None:
    file.seek(start)
    rest = memoryview(content)
    while rest:  # a disk that is nearly full takes a part, and says so by its length alone
        rest = rest[file.write(rest) :]
    file.truncate()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    """Have a file's content, or a folder's list of names, on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    """Bytes of a file or of all files in a folder; 0 if there is none."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _room(path: Path, written: int) -> str:
    """What is known of the room that a write had."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    return (
        f" ({free / 1e6:,.1f} MB are free in {folder}; it needs more than the {written / 1e6:,.1f} MB written so far)"
    )
