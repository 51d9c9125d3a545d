"""SIGTERM and SIGINT (Ctrl-C): the first lets a training step finish, the second ends the run at once.

    with StopSignals() as stop:            # a signal raises Stopped at once
        with stop.deferred():              # the first signal is noted, the second raises
            for step in steps:
                ...
                stop.check()               # raises Stopped if a signal was noted
            with stop.at_once():           # a signal raises at once again
                ...

Code that a signal interrupts cleans up as it does after an error: files appear whole or not at all (files.py).
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
"""Signals this close together count as one: `timeout`, for example, signals both a process and its group."""


class StopSignals:
    """Handles both signals while it is entered, in the main thread only."""

    def __init__(self) -> None:
        self._noted: int | None = None
        self._noted_at = 0.0
        self._waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # other threads can't set handlers
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            self.handle()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def handle(self) -> None:
        """Take the signals over from a handler that was set since."""
        if self._before:
            for number in _SIGNALS:
                signal.signal(number, self._handle)

    @property
    def noted(self) -> bool:
        """Whether a signal was noted that the next `check` will raise."""
        return self._noted is not None

    def check(self, saved: str = "") -> None:
        """Raise Stopped if a signal was noted. `saved` tells its message what is on disk."""
        if self._noted is not None:
            raise Stopped(self._noted, saved)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first signal waits for the next `check`."""
        with self._waiting(True):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal raises at once. A signal that was noted before raises on entry."""
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
        os.write(2, message.encode())  # print is not reentrant


def ignore_signals() -> None:
    """Leave both signals to another process, which ends this one."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
