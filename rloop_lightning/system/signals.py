"""SIGTERM and SIGINT (Ctrl-C): the first one lets a training step finish, the second one ends the run at once.

    with StopSignals() as stop:            # here a signal raises Stopped at once
        with stop.deferred():              # here the first one is noted, and the second raises
            for step in steps:
                ...
                stop.check()               # raises Stopped if one was noted
            with stop.at_once():           # nothing here is worth waiting for
                ...

What a signal interrupts at once cleans up as it does after an error: files appear whole or not at all (atomic.py).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from rloop_lightning.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE_REQUEST_S = 0.5
"""Signals this close to each other are one: `timeout` and others send theirs to a process and to its group."""


class StopSignals:
    """Handles both signals while it is entered; without that, or in another thread than the main one, none comes."""

    def __init__(self) -> None:
        self._noted: int | None = None
        self._noted_at = 0.0
        self._waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others must not set handlers
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def noted(self) -> bool:
        """Whether a signal came that `check` will act on."""
        return self._noted is not None

    def check(self, saved: str = "") -> None:
        """Raise Stopped if a signal was noted; `saved` is what its message says is on disk."""
        if self._noted is not None:
            raise Stopped(self._noted, saved)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Here the first signal waits for the next `check`."""
        with self._waiting(True):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Here the first signal raises, one that was noted before included."""
        with self._waiting(False):
            self.check()
            yield

    @contextmanager
    def _waiting(self, waits: bool) -> Iterator[None]:
        before, self._waits = self._waits, waits
        try:
            yield
        finally:
            self._waits = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self._noted is None
        if not first and time.monotonic() - self._noted_at < ONE_REQUEST_S:
            return
        self._noted, self._noted_at = number, time.monotonic()
        if not (first and self._waits):
            raise Stopped(number)
        name = signal.Signals(number).name
        message = f"\n{name}: stops once this training step is done and saved; a second signal stops at once\n"
        os.write(2, message.encode())  # what print does is not allowed in the midst of another print
