"""The claim on a run in an object store: one process at a time writes there.

    lock = StoreLock(store)
    lock.take("--out")      # raises ClaimError if another process writes to the run
    ...
    lock.release()

A lock object names its owner, who renews it every minute. A new one is made by the store's own condition (only if there
is none), so that of two processes one gets it. A lock whose owner is gone is taken over: at once if the owner was a
process of this machine that has ended, otherwise when it has not been renewed for five minutes.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rloop_lightning.errors import ClaimError
from rloop_lightning.system.store import Store
from rloop_lightning.system.store_errors import StoreError
from rloop_lightning.system.terminal import one_line

LOCK = "run.claim.json"
"""The name of the lock object."""

_log = logging.getLogger(__name__)

_RENEWED_S = 60.0
_EXPIRES_S = 300.0
_START_TIME = 19  # in the fields of /proc/N/stat after the name


class StoreLock:
    """The lock of a run in a store.

    Args:
        store: the folder of the run.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._id = uuid.uuid4().hex
        self._since = time.time()
        self._released = threading.Event()
        self._lost = ""

    def take(self, place: str) -> None:
        """Take the lock, and renew it until it is released.

        Args:
            place: the option and the URL, for messages.

        Raises:
            ClaimError: another process has it.
            StoreError: the store can't be asked.
        """
        if not self._store.create(LOCK, self._content()):
            holder = self._holder()
            if not _is_gone(holder):
                raise ClaimError(
                    f"{place} is in use by {_named(holder)}; wait until it ends, or stop it. If it was killed, wait "
                    f"until the lock is {_EXPIRES_S / 60:.0f} minutes old"
                )
            _log.warning(f"{place}: {_named(holder)} has ended without giving it back; it is taken over")
            self._store.write(LOCK, self._content())
        if (holder := self._holder()).get("id") != self._id:  # a store without conditions, or two that take it over
            raise ClaimError(f"{place} is in use by {_named(holder)}; wait until it ends, or stop it")
        threading.Thread(target=self._renew, name="store lock", daemon=True).start()

    def lost(self) -> str:
        """Who has taken the lock over meanwhile; empty if nobody has. A lock object that was deleted is written again.

        Raises:
            StoreError: the store can't be asked.
        """
        holder = {} if self._lost else self._holder()
        if holder and holder.get("id") != self._id:
            self._lost = _named(holder)
        return self._lost

    def release(self) -> None:
        """Give the lock back, unless another process has it."""
        self._released.set()
        try:
            if not self.lost():
                self._store.remove([LOCK])
        except StoreError as error:
            _log.warning(f"{error}; the lock object {LOCK} is left there, and expires")

    def _renew(self) -> None:
        while not self._released.wait(_RENEWED_S):
            try:
                if self.lost():
                    return
                self._store.write(LOCK, self._content())
            except StoreError:  # tried again in a minute; uploads report a store that does not answer
                continue

    def _content(self) -> bytes:
        process = os.getpid()
        me = {"id": self._id, "host": socket.gethostname(), "process": process, "started": _started(process)}
        return json.dumps({**me, "since": self._since, "renewed": time.time()}).encode()

    def _holder(self) -> dict[str, Any]:
        """What the lock object says; empty if there is none, or it is damaged."""
        try:
            found = json.loads(self._store.read(LOCK) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def _is_gone(holder: Mapping[str, Any]) -> bool:
    """Whether the owner of a lock has ended, as far as that can be known."""
    renewed = holder.get("renewed")
    if not isinstance(renewed, float | int) or time.time() - renewed > _EXPIRES_S:
        return True
    return holder.get("host") == socket.gethostname() and holder.get("started") != _started(holder.get("process"))


def _started(process: Any) -> str:
    """When a process of this machine started, which tells it from a later one of the same number; empty if it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[_START_TIME]
    except (OSError, IndexError):
        return ""


def _named(holder: Mapping[str, Any]) -> str:
    host, process = one_line(str(holder.get("host", "an unknown host"))), one_line(str(holder.get("process", "?")))
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(float(holder["since"])))
    except (KeyError, TypeError, ValueError, OverflowError):
        return f"process {process} on host {host}"
    return f"process {process} on host {host}, since {since}"
