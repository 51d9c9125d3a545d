"""A lock on a folder that ends with its process, however that ends.

    with FolderLock(run / "run.lock"):      # raises LockedError if another process holds it
        ...

It is a POSIX record lock, which the kernel keeps: nothing is left behind by a kill, and NFS and Lustre (mounted with
`flock`) keep it across hosts. The file's content only tells who holds it. On a file system without locks, the folder is
not protected, and a warning says so.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Self

_log = logging.getLogger(__name__)

_HELD_ELSEWHERE = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# A process owns a record lock as a whole, so the kernel would give it a second time to the same process.
_held: set[tuple[int, int]] = set()


class LockedError(OSError):
    """Another process, or another part of this one, holds the lock. The message says which."""


class FolderLock:
    """An exclusive lock, held while entered.

    The lock file must not be opened by this process while the lock is held: closing it would release the lock.

    Args:
        path: the lock file, created if missing; its folder must exist.

    Raises:
        LockedError: the lock is held; on entry.
        OSError: the file can't be written; on entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock."""
        if self.path.exists() and _identity(os.stat(self.path)) in _held:
            raise LockedError(f"{self.path.parent} is in use by this process")
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in _HELD_ELSEWHERE:
                raise LockedError(f"{self.path.parent} is in use by {holder}") from error
            if error.errno not in _NO_LOCKS:
                raise
            _log.warning(
                f"{self.path.parent}: its file system has no locks ({error.strerror}); make sure that no other process "
                "uses this folder"
            )
            return
        self._descriptor = descriptor
        _held.add(_identity(os.fstat(descriptor)))
        me = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)

    def release(self) -> None:
        """Give the lock back, if it is held. The empty file stays: removing it would race with the next holder."""
        if self._descriptor is None:
            return
        _held.discard(_identity(os.fstat(self._descriptor)))
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _holder(descriptor: int) -> str:
    """Who holds the lock, from the file's content, which may be empty or damaged."""
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {int(holder['process'])} on {holder['host']!r}, since {holder['since']!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
