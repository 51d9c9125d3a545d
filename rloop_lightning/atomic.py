"""Files and folders that appear whole or not at all, and seeds that depend on nothing but their names."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = ".partial"


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
    except BaseException:
        _remove(partial)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from names and numbers, the same on every machine: `derive_seed(seed, "explore", round, step)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


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
