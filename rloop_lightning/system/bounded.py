"""Work on untrusted input, which may not end, exhaust memory or crash, is done by a copy of this process with limits.

    prompts = bounded(lambda: (render(text) for text in texts), Limits(cpu_s=5, memory_mb=512))

The copy is a fork, so it has what this process has loaded and starts within milliseconds. It computes and answers,
nothing else: it has no open files of this process, writes nowhere, and ends without the clean-up of this process. Work
in it must not use an accelerator, nor several threads of torch.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rloop_lightning.system.terminal import cause

_CLOCK_FACTOR = 20  # clock time for a second of CPU time, on a busy machine
_CHUNK, _BUFFER = 1 << 16, 1 << 20  # bytes
_VALUE, _REFUSAL, _FAILURE, _NO_MEMORY, _END = b"v", b"r", b"f", b"m", b"e"


class LimitError(Exception):
    """The work did not end within its limits. The message says which one, as in "took more than 5 s of CPU time".

    Args:
        message: the limit.
        values: the values that came before.
    """

    def __init__(self, message: str, values: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.values = values


@dataclass(frozen=True)
class Limits:
    """What the work may take.

    Args:
        cpu_s: CPU time until the first value, and between one value and the next, seconds.
        cpu_s_per_value: CPU time of all values but for `cpu_s`, on average, seconds.
        memory_mb: address space besides that of this process, MiB.
    """

    cpu_s: float
    memory_mb: int
    cpu_s_per_value: float = 0.0


def bounded(work: Callable[[], Iterable[Any]], limits: Limits, *, together: int = 1) -> list[Any]:
    """The values of `work`, which pass through JSON.

    Args:
        work: yields the values.
        limits: limits of the work.
        together: values that are sent at once; those of the last sending may be lost when the work exceeds a limit.

    Raises:
        LimitError: it exceeded a limit, crashed, or raised another error.
        ValueError: it raised one, with this message.
    """
    reader, writer = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads that might hold a lock: see _CLOCK_FACTOR
            child = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise LimitError(f"could not be started: {error.strerror}") from error
    if child == 0:
        _serve(work, limits, together, writer)
    os.close(writer)
    try:
        return _collect(reader, child, limits)
    finally:
        os.close(reader)
        _kill(child)


def _collect(reader: int, child: int, limits: Limits) -> list[Any]:
    values: list[Any] = []
    rest: list[bytes] = []
    silent_s = 0  # counted, so that the time in which both processes are stopped does not count
    while True:
        ready, _, _ = select.select([reader], [], [], 1.0)
        if not ready:
            silent_s += 1
            if silent_s > max(1.0, limits.cpu_s) * _CLOCK_FACTOR:
                raise LimitError(f"did not end within {silent_s} s", values)
            continue
        silent_s = 0
        chunk = os.read(reader, _CHUNK)
        if not chunk:
            raise LimitError(_why_it_ended(child, limits), values)
        *lines, last = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join(rest) + lines[0]
            rest = []
        rest.append(last)
        for line in lines:
            kind, content = line[:1], line[1:]
            if kind == _END:
                return values
            if kind == _NO_MEMORY:
                raise LimitError(f"needs more than {limits.memory_mb} MiB of memory", values)
            if kind == _FAILURE:
                raise LimitError(json.loads(content), values)
            if kind == _REFUSAL:
                raise ValueError(json.loads(content))
            values.append(json.loads(content))


def _why_it_ended(child: int, limits: Limits) -> str:
    """Why the work ended without an answer."""
    _, status = os.waitpid(child, 0)
    number = -os.waitstatus_to_exitcode(status)
    if number == signal.SIGXCPU:
        return f"took more than {limits.cpu_s:g} s of CPU time"
    return f"crashed ({signal.Signals(number).name})" if number > 0 else f"crashed (exit code {-number})"


def _kill(child: int) -> None:
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):  # it has ended and was waited for
        pass


def _serve(work: Callable[[], Iterable[Any]], limits: Limits, together: int, writer: int) -> NoReturn:
    """The copy's part: do the work and answer. It never returns into the code of the process that it copies."""
    try:
        gc.freeze()  # finalizers of objects of the other process are its own
        _let_go(writer)
        _limit_memory(limits.memory_mb)
        with os.fdopen(writer, "wb", buffering=_BUFFER, closefd=False) as answer:
            try:
                granted = _limit_cpu(limits.cpu_s)
                for number, value in enumerate(work(), 1):
                    answer.write(_VALUE + json.dumps(value).encode() + b"\n")
                    if number % together == 0:
                        answer.flush()
                    allowed = min(number * limits.cpu_s_per_value, time.process_time()) + limits.cpu_s
                    if allowed > granted:
                        granted = _limit_cpu(allowed)
                answer.write(_END + b"\n")
            except ValueError as error:
                answer.write(_REFUSAL + json.dumps(str(error)).encode() + b"\n")
            except MemoryError:
                answer.write(_NO_MEMORY + b"\n")
            except Exception as error:
                answer.write(_FAILURE + json.dumps(f"failed ({cause(error)})").encode() + b"\n")
    except BaseException:
        os._exit(1)
    os._exit(0)


def _let_go(kept: int) -> None:
    """Leave the signals, files and terminal of the process that was copied."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the other one decides
    for number in (signal.SIGTERM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    for descriptor in _descriptors():
        if descriptor > 2 and descriptor != kept:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(descriptor)
    sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False)  # they may have been another file's
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not copied
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _descriptors() -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # not Linux
        return range(os.sysconf("SC_OPEN_MAX"))


def _limit_memory(memory_mb: int) -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux
        return
    _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_mb * 2**20)


def _limit_cpu(seconds: float) -> int:
    """Limit the CPU time since the start. Returns the limit, which is in whole seconds."""
    _lower(resource.RLIMIT_CPU, math.ceil(seconds))
    return math.ceil(seconds)


def _lower(what: int, limit: int) -> None:
    """Set a soft limit, at most the hard one."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
