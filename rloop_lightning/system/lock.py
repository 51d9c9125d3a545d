"""A lock on a folder that ends with its process, however that ends.

    with FolderLock(run / "run.lock"):      # raises LockedError if another process holds it
        ...

It is a POSIX record lock, which the kernel keeps: nothing is left behind by a kill, and NFS and Lustre (mounted with
`flock`) keep it across hosts. The file's content only tells who holds it. On a file system without locks, the folder is
not protected, and a warning says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Self

from rloop_lightning.system.terminal import one_line

_log = logging.getLogger(__name__)

_HELD_ELSEWHERE = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# `check` in another process holds the lock for a moment, and a new holder needs one to write who it is.
_PATIENCE_S, _PAUSE_S = 0.2, 0.02
# A process owns a record lock as a whole, so the kernel would give it a second time to the same process, and closing
# any descriptor of the file would release it. The process id is part of it because a fork inherits the set, not locks.
_held: set[tuple[int, int, int]] = set()
_guard = threading.Lock()


class LockedError(OSError):
    """Another process, or another part of this one, holds the lock. The message says which."""


class FolderLock:
    """An exclusive lock, held while entered.

    The lock file must not be opened by this process while the lock is held: closing it would release the lock.

    Args:
        path: the lock file, created if missing; its folder must exist.

    Attributes:
        created: whether the lock is held in a file that was missing before.

    Raises:
        LockedError: the lock is held; on entry.
        OSError: the file can't be opened; on entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.created = False
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, and write who holds it."""
        self._take(create=True)
        if self._descriptor is None:
            return
        me = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        with contextlib.suppress(OSError):  # a full disk: the lock holds without it
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(me).encode(), 0)

    def check(self) -> None:
        """Raise LockedError if the lock is held. Nothing is written; a missing file is not held."""
        with contextlib.suppress(FileNotFoundError):
            self._take(create=False)
            self._close()

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back, and empty its file.

        Args:
            remove: remove the file as well. A process that has opened it meanwhile notices that.
        """
        with contextlib.suppress(OSError):
            if self._descriptor is not None:
                os.ftruncate(self._descriptor, 0)
            if remove:
                self.path.unlink()
        self.created = False
        self._close()

    def _take(self, *, create: bool) -> None:
        """Open the file and lock it; `_descriptor` stays None on a file system without locks."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                if self._try(create):
                    return
            except LockedError:
                if time.monotonic() > until:
                    raise
            time.sleep(_PAUSE_S)

    def _try(self, create: bool) -> bool:
        """False if the file that was locked is no longer the one at the path, because its holder has removed it."""
        with _guard:
            if self.path.exists() and _identity(os.stat(self.path)) in _held:
                raise LockedError(f"{self.path.parent} is in use by this process")
            descriptor = self._open(create)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _holder(descriptor)
                os.close(descriptor)
                if error.errno in _HELD_ELSEWHERE:
                    self.created = False  # another process was faster to lock it
                    raise LockedError(f"{self.path.parent} is in use by {holder}") from error
                if error.errno not in _NO_LOCKS:
                    raise
                _log.warning(
                    f"{self.path.parent}: its file system has no locks ({error.strerror}); make sure that no other "
                    "process uses this folder"
                )
                return True
            if not _is_at(self.path, descriptor):
                os.close(descriptor)
                return False
            self._descriptor = descriptor
            _held.add(_identity(os.fstat(descriptor)))
            return True

    def _open(self, create: bool) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self.created = False
        if create:
            try:
                descriptor = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                pass
            else:
                self.created = True
                return descriptor
        return os.open(self.path, flags)

    def _close(self) -> None:
        if self._descriptor is None:
            return
        with _guard:
            _held.discard(_identity(os.fstat(self._descriptor)))
            os.close(self._descriptor)
            self._descriptor = None


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return _identity(os.stat(path)) == _identity(os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """Who holds the lock, from the file's content, which may be empty or damaged."""
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        process, host, since = int(holder["process"]), one_line(str(holder["host"])), one_line(str(holder["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    return f"process {process} on host {host}, since {since}"
