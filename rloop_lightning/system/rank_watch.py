"""Watches the processes (ranks) of a job: when one dies, hangs or fails, all end with one message and one exit code.

A rank that waits in a collective can't be woken. So each rank has a thread that tells a store each second that the rank
lives, and looks whether the others do. The first fault is the job's: rank 0 prints it, and every rank exits at once.
Files are safe, since a run survives `kill -9`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not say that it exports it

from rloop_lightning.errors import RunFault

LOST_AFTER_S = 30.0
"""A rank that has not written to the store for so long is lost."""

_EVERY_S = 0.5
_BUSY = 0.2  # of a core; a rank that computes does not hang
_ANSWER = timedelta(seconds=10)
_COMES = timedelta(minutes=10)  # rank 0 may still be starting
_LEAVE_S = 2.0  # after the end of the run, a rank has so long to end by itself
_LEFT_S = 30.0  # after the end of the run, rank 0 keeps the store for so long, for ranks that have not left
_FAULT, _END = "fault", "end"
_DISTRIBUTED = os.path.dirname(dist.__file__)


@dataclass(frozen=True)
class Fault:
    """Why the job ends.

    Args:
        text: for the user; names the rank.
        code: the exit code of all ranks.
        rank: that can't go on.
        lost: whether that rank is gone, and can print nothing.
        stacks: whether all ranks print where they are.
    """

    text: str
    code: int = 1
    rank: int = 0
    lost: bool = False
    stacks: bool = False


class JobStore:
    """The store through which the ranks of a job find each other.

    Args:
        host, port: of its server; port 0 takes a free one.
        serves: whether this process is the server.
    """

    def __init__(self, host: str, port: int, *, serves: bool) -> None:
        self._host = host
        self._server = TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=_ANSWER) if serves else None
        self.port = port if self._server is None else self._server.port

    def client(self) -> Any:
        """A new connection; one thread at a time can use it."""
        return TCPStore(self._host, self.port, is_master=False, timeout=_COMES)


class RankWatch:
    """The watch of one rank. Rank 0 looks after all others, and they look after rank 0.

    Args:
        rank: number of this rank.
        size: ranks of the job.
        store: the job's store.
        hang_s: seconds without progress after which a rank that works counts as hung.
        lost: says which rank this process knows to be dead, and why; None if none is.
        before_exit: called before a fault ends the process, such as to end those that it started.
        tell: shows the user the job's fault.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: JobStore,
        *,
        hang_s: float,
        lost: Callable[[], Fault | None] = lambda: None,
        before_exit: Callable[[], None] = lambda: None,
        tell: Callable[[str], None],
    ) -> None:
        self.rank = rank
        self.size = size
        self.store = store
        self._hang_s = hang_s
        self._lost = lost
        self._before_exit = before_exit
        self._tell = tell
        self._reports = store.client()
        self._looks = store.client()
        self._last_beat = time.monotonic()
        self._cpu_seconds = time.process_time()
        self._waits = False
        self._done = threading.Event()
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._looks.set(_alive(rank), "0")  # so that a rank that dies at once is missed
        self._thread = threading.Thread(target=self._watch, name="rank watch", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """This rank has made progress."""
        self._last_beat = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """In the block, this rank waits for others, and need not make progress."""
        self._waits = True
        try:
            yield
        finally:
            self.beat()
            self._waits = False

    def fail(self, text: str, code: int = 1) -> None:
        """End the job because of this rank. Does not return, but in rank 0."""
        self._report(self._reports, Fault(text, code, self.rank))
        if self.rank:
            time.sleep(2 * LOST_AFTER_S)  # the watch ends this process

    def await_verdict(self) -> None:
        """After the loss of a connection: wait for the watch to end this process with the reason."""
        time.sleep(LOST_AFTER_S + 4 * _EVERY_S + _ANSWER.seconds)

    def end(self, code: int) -> None:
        """The run is over: the other ranks are to exit with this code, if they have not left by themselves.

        Returns when they have: they would take the end of their store for the death of rank 0.
        """
        self._done.set()
        self._thread.join(2 * _ANSWER.seconds)
        self._reports.set(_END, str(code))
        until = time.monotonic() + _LEFT_S
        others = [_left(rank) for rank in range(1, self.size)]
        while not self._reports.check(others) and self._lost() is None and time.monotonic() < until:
            time.sleep(0.05)

    def stop(self) -> None:
        """This rank leaves, as the run is over."""
        self._done.set()
        self._reports.set(_left(self.rank), "")

    def _watch(self) -> None:
        beats = 0
        while not self._done.wait(_EVERY_S):
            beats += 1
            try:
                self._looks.set(_alive(self.rank), str(beats))
                fault = self._fault()
                if fault is None and self.rank and self._looks.check([_END]):
                    self._leave(int(self._looks.get(_END)))
            except dist.DistError as error:
                fault = Fault(f"rank 0 was killed, or its machine can't be reached: {error}", lost=True)
            if fault is not None and not self._done.is_set():
                self._exit(fault)

    def _fault(self) -> Fault | None:
        """The job's fault, which may be found here."""
        if not self._looks.check([_FAULT]):
            found = self._lost() or self._hangs() or self._silent()
            if found is None:
                return None
            self._report(self._looks, found)
        return Fault(**json.loads(self._looks.get(_FAULT)))

    def _hangs(self) -> Fault | None:
        used, self._cpu_seconds = time.process_time() - self._cpu_seconds, time.process_time()
        if used > _BUSY * _EVERY_S and not _in_collective():  # such as while rank 0 filters a large pool
            self.beat()
        stalled = time.monotonic() - self._last_beat
        # In a collective, it most likely waits for another rank that hangs; all may wait if they are out of step.
        if self._waits or stalled < self._hang_s * (2 if _in_collective() else 1):
            return None
        text = f"{rank_name(self.rank)} has made no progress for {stalled:.0f} s; the stacks of all ranks are above"
        return Fault(text, rank=self.rank, stacks=True)

    def _silent(self) -> Fault | None:
        """The fault that a rank has gone without a word."""
        now = time.monotonic()
        for rank in range(1, self.size) if self.rank == 0 else (0,):
            key = _alive(rank)
            beat = self._looks.get(key) if self._looks.check([key]) else b""
            before, since = self._seen.get(rank, (b"", now))
            if beat != before:
                self._seen[rank] = (beat, now)
            elif beat and now - since > LOST_AFTER_S:
                gone = f"no sign of life for {LOST_AFTER_S:g} s"
                return Fault(f"rank {rank} was killed, or its machine can't be reached: {gone}", rank=rank, lost=True)
        return None

    def _report(self, store: Any, fault: Fault) -> None:
        store.compare_set(_FAULT, "", json.dumps(asdict(fault)))  # the first one stays

    def _leave(self, code: int) -> None:
        """End this process, unless it does so by itself."""
        if not self._done.wait(_LEAVE_S):
            self._looks.set(_left(self.rank), "")
            self._before_exit()
            os._exit(code)

    def _exit(self, fault: Fault) -> None:
        """End this process with the job's fault."""
        if fault.stacks:
            self._print_stacks()
        if self.rank == 0:
            time.sleep(3 * _EVERY_S)  # the others look at its store, and print their stacks first
        if self.rank == (1 if fault.lost and fault.rank == 0 else 0):
            self._tell(fault.text)
        self._before_exit()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(fault.code)

    def _print_stacks(self) -> None:
        """Print where this rank is, and wait for the others: the end of one would move them."""
        print(f"{rank_name(self.rank)}:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._looks.set(_printed(self.rank), "")
        with suppress(dist.DistError):
            self._looks.wait([_printed(rank) for rank in range(self.size)], _ANSWER)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that another rank has gone, in the words of torch.distributed."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _in_collective() -> bool:
    """Whether the main thread is inside of torch.distributed."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return frame is not None and frame.f_code.co_filename.startswith(_DISTRIBUTED)


def told(error: BaseException) -> str:
    """An error for a user who sees no traceback: a fault of the run by its message, any other with its type."""
    return str(error) if isinstance(error, RunFault) else f"{type(error).__name__}: {error}".removesuffix(": ")


def rank_name(rank: int) -> str:
    """This rank and its process, for messages."""
    return f"rank {rank} (process {os.getpid()} on {socket.gethostname()})"


def _alive(rank: int) -> str:
    return f"alive/{rank}"


def _printed(rank: int) -> str:
    return f"printed/{rank}"


def _left(rank: int) -> str:
    return f"left/{rank}"
