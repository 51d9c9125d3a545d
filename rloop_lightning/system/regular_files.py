"""Opens files whose paths come from settings, and nothing else that a path can name.

with open_regular(path) as file: ...

A read from a pipe waits for a writer that may never come, and a read from `/dev/zero` never ends.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def not_a_file(path: Path) -> str:
    """What a path is instead of a file, such as "a pipe"; empty for a file, and if nothing is there."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # nothing there, a loop of links, a NUL in the path
        return ""
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "")


def exists(path: Path) -> bool:
    """Whether something is there. A name that is too long, a loop of links, or a folder without access is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. A file whose size is 0 reads as empty, as those of `/proc` can block or have no end.

    Raises:
        OSError: it can't be opened, or is a pipe, a socket, a device or a folder. `strerror` says why.
    """
    if kind := not_a_file(path):
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    # Without blocking, should a pipe have taken the file's place since.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode, size = (status := os.fstat(descriptor)).st_mode, status.st_size
    if size == 0 or not stat.S_ISREG(mode):
        os.close(descriptor)
        return open(os.devnull, "rb")
    return os.fdopen(descriptor, "rb")
