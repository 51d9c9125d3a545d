"""Worker processes for tasks that may hang, crash or exhaust memory. Each task has a limit on time and memory.

    with WorkerPool("rloop_lightning.rewards.equivalence:check", time_limit_s=5, memory_limit_mb=1024) as pool:
        outcomes = pool.map([["1/2", "0.5"], ...])      # in order; outcome.status, outcome.value

A worker is a fresh interpreter, not a copy of this process. It inherits no thread, lock, device or open file, and needs
neither signals nor the main thread of this process. It starts the same way from a forked, spawned or daemon process. It
imports the function's module and worker.py, and nothing else of the package.

Tasks and values pass through a socket as JSON; nothing is unpickled. A worker receives tasks in chunks and answers
them one by one, so the current task of a dead worker is known. The rest of the chunk goes to another worker.

A task's time is its worker's CPU time, so that what times out does not depend on the machine's load. On the clock, a
task that sleeps has `CLOCK_FACTOR` times as long; one that waits for a CPU has longer. A task whose worker died, or was
stopped from outside, is tried once more in a new worker. So only a task that kills its worker twice has crashed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Self

from rloop_lightning.rewards.worker import CLOCK_FACTOR, Status, encode
from rloop_lightning.system.processes import STOPPED_STATES, WAITING_STATES, limit_sends, process_state
from rloop_lightning.system.working_directory import searched_folder

_BOOTSTRAP = (
    "import json, sys; sys.path[:], folder = json.loads(sys.argv[2]); "
    "from rloop_lightning.rewards.worker import serve; serve(int(sys.argv[1]), folder)"
)
_START_LIMIT_S = 120.0  # imports on a busy machine
_MOST_FAILED_STARTS = 3
_CHUNKS_PER_WORKER = 4  # at least, so that all workers end at about the same time


class WorkerStartError(RuntimeError):
    """Workers exit before they can take a task."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a task.

    Args:
        status: `done`; `exceeded_memory` if the function raised a MemoryError; `failed` if it raised another error;
            `timed_out` or `crashed` if its worker was killed or died.
        value: the function's return value, if `done`.
    """

    status: Status
    value: Any = None


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    deadline: float  # of the start, then of the current task; monotonic clock, seconds
    ready: bool = False
    served: bool = False  # whether it has answered a task
    tasks: deque[int] = field(default_factory=deque)  # numbers of the tasks that are not yet answered


class WorkerPool:
    """Maps one function over tasks in worker processes, which are killed and replaced when they exceed a limit.

    Workers start with the first tasks. They end with the pool, with `close`, or with this process, however it ends.
    A pool can be used from any thread; one batch runs at a time. A copy in another process has its own workers.

    Args:
        function: "module:name"; takes and returns JSON values. Its module must not need `__main__`.
        processes: number of workers.
        time_limit_s: limit for one task, seconds of CPU time.
        memory_limit_mb: address space of one worker, MiB, including the interpreter and its imports (sympy: 80).
        chunk: maximum number of tasks that a worker holds at once.
    """

    def __init__(
        self,
        function: str,
        *,
        processes: int = 2,
        time_limit_s: float = 5.0,
        memory_limit_mb: int = 1024,
        chunk: int = 32,
    ) -> None:
        self.function = function
        self.processes = processes
        self.time_limit_s = time_limit_s
        self.memory_limit_mb = memory_limit_mb
        self.chunk = chunk
        self._fresh()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _remake, (self.function, self.processes, self.time_limit_s, self.memory_limit_mb, self.chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. The pool can be used again and then starts new ones."""
        _end(self._workers, self._owner)

    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [worker.process.pid for worker in self._workers]

    def map(self, tasks: Sequence[Any]) -> list[Outcome]:
        """One outcome for each task, in order.

        Raises:
            WorkerStartError: workers don't start, because of the installation, not of a task.
        """
        if self._owner != os.getpid():
            self._fresh()  # after a fork, workers and lock belong to the parent
        with self._lock:
            try:
                return self._map(tasks)
            except BaseException:
                self.close()  # they may still run tasks that nobody waits for
                raise

    def _fresh(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        weakref.finalize(self, _end, self._workers, self._owner)

    def _map(self, tasks: Sequence[Any]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        size = max(1, min(self.chunk, len(tasks) // (_CHUNKS_PER_WORKER * self.processes)))
        waiting = deque(deque(range(i, min(i + size, len(tasks)))) for i in range(0, len(tasks), size))
        self._failed_starts = 0
        self._retried: set[int] = set()
        while len(outcomes) < len(tasks):
            missing = min(self.processes, len(waiting) + sum(bool(worker.tasks) for worker in self._workers))
            while len(self._workers) < missing:
                self._workers.append(self._start())
            for worker in list(self._workers):
                if worker.ready and not worker.tasks and waiting:
                    self._give(worker, waiting, tasks)
            self._collect(waiting, outcomes)
        return [outcomes[number] for number in range(len(tasks))]

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        with theirs:
            # Workers start with these signals blocked. A signal that stops this process must not stop the workers
            # first, or their tasks would count as crashed. They exit with this process, when the socket closes.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            try:
                process = subprocess.Popen(
                    [sys.executable, "-c", _BOOTSTRAP, str(theirs.fileno()), json.dumps([sys.path, searched_folder()])],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # parsers print what they can't read
                    stderr=subprocess.DEVNULL,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        limit_sends(ours, self.time_limit_s)
        worker = _Worker(process, ours, time.monotonic() + _START_LIMIT_S)
        with contextlib.suppress(OSError):  # it died at once; the next read detects this
            ours.send_bytes(encode([self.function, self.time_limit_s, self.memory_limit_mb]))
        return worker

    def _give(self, worker: _Worker, waiting: deque[deque[int]], tasks: Sequence[Any]) -> None:
        chunk = waiting.popleft()
        try:
            if worker.served and chunk[0] in self._retried:
                raise BrokenPipeError  # a second try is in a new worker
            worker.connection.send_bytes(encode([tasks[number] for number in chunk]))
        except OSError:  # it died or was stopped while idle, so no task is at fault
            waiting.appendleft(chunk)
            self._drop(worker)
            return
        worker.tasks = chunk
        worker.deadline = self._deadline()

    def _collect(self, waiting: deque[deque[int]], outcomes: dict[int, Outcome]) -> None:
        """Wait for the next message, death or deadline, and handle all pending ones."""
        busy = [worker for worker in self._workers if worker.tasks or not worker.ready]
        patience = min((worker.deadline for worker in busy), default=0.0) - time.monotonic()
        readable = wait([worker.connection for worker in busy], max(0.0, patience))
        for worker in busy:
            if worker.connection in readable:
                try:
                    self._receive(worker, waiting, outcomes)
                except (EOFError, OSError):
                    self._lose(worker, "crashed", waiting, outcomes)
            elif time.monotonic() >= worker.deadline:
                state = process_state(worker.process.pid)
                if worker.tasks and state in WAITING_STATES:
                    worker.deadline = self._deadline()  # its CPU limit ends it, once it gets a CPU
                else:
                    self._lose(worker, "crashed" if state in STOPPED_STATES else "timed_out", waiting, outcomes)

    def _deadline(self) -> float:
        return time.monotonic() + CLOCK_FACTOR * self.time_limit_s

    def _receive(self, worker: _Worker, waiting: deque[deque[int]], outcomes: dict[int, Outcome]) -> None:
        status, value, leaving = json.loads(worker.connection.recv_bytes())
        if worker.ready:
            outcomes[worker.tasks.popleft()] = Outcome(status, value)
            worker.served = True
            worker.deadline = self._deadline()
        elif status == "failed":
            hint = (
                f"; the memory limit of {self.memory_limit_mb} MiB may be too small" if "map segment" in value else ""
            )
            raise WorkerStartError(f"a reward worker can't import {self.function}: {value}{hint}")
        worker.ready = True
        self._failed_starts = 0
        if leaving:
            self._drop(worker)
            if worker.tasks:
                waiting.appendleft(worker.tasks)

    def _lose(self, worker: _Worker, status: Status, waiting: deque[deque[int]], outcomes: dict[int, Outcome]) -> None:
        """The worker's current task timed out, or is tried once more; its other tasks go to another worker."""
        code = self._drop(worker)
        if code == -signal.SIGPROF:
            status = "timed_out"
        if worker.tasks:
            number = worker.tasks.popleft()
            if status == "timed_out" or number in self._retried:
                outcomes[number] = Outcome(status)
            else:
                self._retried.add(number)
                waiting.append(deque([number]))
        elif not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _MOST_FAILED_STARTS:
                raise WorkerStartError(
                    f"{self._failed_starts} reward workers in a row ended with exit code {code} before they were "
                    f"ready; the memory limit of {self.memory_limit_mb} MiB may be too small"
                )
        if worker.tasks:
            waiting.appendleft(worker.tasks)

    def _drop(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return _kill(worker)


def _remake(function: str, processes: int, time_limit_s: float, memory_limit_mb: int, chunk: int) -> WorkerPool:
    return WorkerPool(
        function,
        processes=processes,
        time_limit_s=time_limit_s,
        memory_limit_mb=memory_limit_mb,
        chunk=chunk,
    )


def _kill(worker: _Worker) -> int:
    worker.connection.close()
    worker.process.kill()  # without effect on one that has ended: its exit code stays
    return worker.process.wait()


def _end(workers: list[_Worker], owner: int) -> None:
    """End the workers, except in a process that was forked from their owner."""
    if os.getpid() == owner:
        for worker in workers:
            _kill(worker)
    workers.clear()
