"""Runs the sampling of rollout steps: at once, or in a thread beside the updates."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import Self, TypeVar

T = TypeVar("T")


class Worker:
    """Does one task after the other. A context manager: leaving it waits for the task under way.

    Args:
        beside: do tasks in a thread; else `submit` does them.
    """

    def __init__(self, *, beside: bool) -> None:
        self.beside = beside
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts") if beside else None
        self._last: Future | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def submit(self, task: Callable[[], T], turn: Lock) -> Future[T]:
        """Begin a task, which has the turn until it ends. Unless it waits for another task, it has it on return."""
        if self._thread is None:
            done: Future[T] = Future()
            with turn:
                done.set_result(task())
            return done
        began = Event()

        def with_turn() -> T:
            with turn:
                began.set()
                return task()

        waits = self._last is not None and not self._last.done()
        self._last = submitted = self._thread.submit(with_turn)
        if not waits:
            began.wait()
        return submitted
