"""What befalls a run's process at a random moment: killed, torn off in a write, out of disk, its workers struck.

Each is armed in the process before it does anything (tests/helpers/killing.py).
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from killing import Fault

_PATHS_OF = {"open": 1, "os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.truncate": 1}
"""Audit events of file operations, and how many of their first arguments are paths."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_WORKER = b"rloop_lightning.rewards.worker"


@dataclass(frozen=True)
class Within:
    """Ends a process that hangs with SIGALRM.

    Args:
        seconds: its limit on the clock.
        fault: what befalls it, if anything.
    """

    seconds: float
    fault: Fault | None = None

    def arm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        if self.fault is not None:
            self.fault.arm()


@dataclass(frozen=True)
class KilledByClock:
    """SIGKILL after some seconds."""

    seconds: float

    def arm(self) -> None:
        threading.Thread(target=self._kill, daemon=True).start()

    def _kill(self) -> None:
        sleep(self.seconds)
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class AtOperation:
    """A fault just before a file operation in the run folder.

    Args:
        out: the run folder.
        number: which operation, from 1.
    """

    out: Path
    number: int

    def arm(self) -> None:
        def act(number: int, _: str) -> None:
            if number == self.number:
                self.strike()

        watch(self.out, act)

    def strike(self) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class KilledAtOperation(AtOperation):
    """SIGKILL."""

    def strike(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class FullDiskAtOperation(AtOperation):
    """From then on, no file can be written beyond its first so many bytes."""

    bytes: int = 0

    def strike(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, resource.RLIM_INFINITY))


@dataclass(frozen=True)
class TornAtOperation(FullDiskAtOperation):
    """From then on, the process is killed in the middle of a write that passes so many bytes of a file."""

    def strike(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        super().strike()


@dataclass(frozen=True)
class Recorded:
    """Nothing befalls the process. Its file operations in the run folder are written to a file, one a line."""

    out: Path
    file: Path

    def arm(self) -> None:
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        watch(self.out, lambda _, what: os.write(descriptor, f"{what}\n".encode()))


@dataclass(frozen=True)
class Strike:
    """One blow against a reward worker.

    Args:
        after_s: seconds since the start of the process, or since the last blow.
        stopped_s: seconds for which it is stopped; 0 kills it.
        choice: which of the workers, in [0, 1).
        busy: wait for a worker that computes, up to a second.
    """

    after_s: float
    stopped_s: float
    choice: float
    busy: bool


@dataclass(frozen=True)
class StruckWorkers:
    """Reward workers are killed, or stopped and continued."""

    strikes: tuple[Strike, ...]

    def arm(self) -> None:
        threading.Thread(target=self._strike, daemon=True).start()

    def _strike(self) -> None:
        for strike in self.strikes:
            sleep(strike.after_s)
            until = monotonic() + 1.0
            while not (workers := list(_workers(busy=strike.busy))) and monotonic() < until:
                sleep(0.002)
            if not workers:
                continue
            worker = workers[int(strike.choice * len(workers))]
            try:
                if not strike.stopped_s:
                    os.kill(worker, signal.SIGKILL)
                    continue
                os.kill(worker, signal.SIGSTOP)
                sleep(strike.stopped_s)
                os.kill(worker, signal.SIGCONT)
            except ProcessLookupError:  # it has ended, or was replaced
                continue


def watch(out: Path, act: Callable[[int, str], Any]) -> None:
    """Have `act` called with number and name of every file operation in a folder, before it is done."""
    count, inside, lock = 0, str(out), threading.Lock()

    def done(what: str, *paths: Any) -> None:
        nonlocal count
        if any(isinstance(path, str) and path.startswith(inside) for path in paths):
            with lock:
                count += 1
                number = count
            act(number, f"{what} {' '.join(str(path).removeprefix(inside) for path in paths)}")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if (paths := _PATHS_OF.get(event)) and not (event == "open" and not (arguments[2] or 0) & _WRITES):
            done(event, *map(_text, arguments[:paths]))

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        done("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    os.fsync = fsync
    sys.addaudithook(audit)


def _text(path: Any) -> Any:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _workers(*, busy: bool) -> Iterator[int]:
    """Process ids of this process's reward workers, or of those that compute."""
    for child in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = child.read_text().rpartition(")")[2].split()[:2]
            mine = int(parent) == os.getpid() and _WORKER in (child.parent / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if mine and (state == "R" or not busy):
            yield int(child.parent.name)
