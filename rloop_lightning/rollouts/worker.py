"""Runs the sampling of rollout steps: at once, or in a thread beside the updates."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import Self, TypeVar

T = TypeVar("T")

_AGAIN_S = 0.1  # between two interrupts


class Worker:
    """Does one task after the other. A context manager: leaving it stops the task under way.

    Args:
        beside: do tasks in a thread; else `submit` does them.
        interrupt: makes the task under way raise, if it can.
    """

    def __init__(self, *, beside: bool, interrupt: Callable[[], None]) -> None:
        self.beside = beside
        self._interrupt = interrupt
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts") if beside else None
        self._tasks: list[Future] = []  # the last ones submitted to the thread
        self._stops = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def submit(self, task: Callable[[], T], turn: Lock) -> Future[T]:
        """Begin a task, which has the turn until it ends. Unless it waits for another task, it has it on return."""
        if self._thread is None:
            done: Future[T] = Future()
            with turn:
                done.set_result(task())
            return done
        began = Event()

        def with_turn() -> T:
            while not turn.acquire(timeout=_AGAIN_S):
                self.check()
            try:
                began.set()
                return task()
            finally:
                turn.release()

        before = self._running()
        submitted = self._thread.submit(with_turn)
        self._tasks = [*before, submitted]
        if not before:
            began.wait()
        return submitted

    def check(self) -> None:
        """Called by tasks in between.

        Raises:
            CancelledError: the worker stops.
        """
        if self._stops:
            raise CancelledError

    def stop(self) -> None:
        """Interrupt the task under way until it has ended, and do no others."""
        if self._thread is None:
            return
        self._stops = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        while running := self._running():  # again, since a task between two requests has nothing to interrupt
            self._interrupt()
            wait(running, _AGAIN_S)
        self._thread.shutdown()

    def _running(self) -> list[Future]:
        return [task for task in self._tasks if not task.done()]
