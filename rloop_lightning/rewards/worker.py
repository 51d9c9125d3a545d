"""A worker process of workers.py: receives tasks over a socket, runs one function on each, and returns the results.

It imports little from the package, so a worker starts fast and takes little memory.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from rloop_lightning.system.working_directory import search_working_directory

Status = Literal["done", "failed", "timed_out", "exceeded_memory", "crashed"]

CLOCK_FACTOR = 2.0
"""A task may take its limit of CPU time, and this many times as long on the clock."""
_ORPHAN_CHECK_S = 0.5


def encode(message: Any) -> bytes:
    """Encode a message for the socket."""
    return json.dumps(message).encode()  # ASCII: lone surrogates pass as escapes


def serve(descriptor: int, folder: str | None) -> None:
    """Run a worker: read the function and its limits from the socket, then chunks of tasks until it closes.

    Args:
        descriptor: the socket.
        folder: a folder that is searched for the function's module last, if there is one.
    """
    import resource  # not on every platform, and needed only here

    if folder is not None:
        search_working_directory(folder)
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        function, time_limit_s, memory_limit_mb = json.loads(connection.recv_bytes())
        limit = memory_limit_mb << 20
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        module, _, name = function.partition(":")
        try:
            run = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            connection.send_bytes(encode(["failed", str(error), True]))
            return
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        connection.send_bytes(encode(["done", None, False]))
        while True:
            for task in json.loads(connection.recv_bytes()):
                # The signal's default action ends the process, even inside C code.
                signal.setitimer(signal.ITIMER_PROF, time_limit_s)
                answer = _answer(run, task)
                signal.setitimer(signal.ITIMER_PROF, 0)
                # Memory that a task leaves behind must not make the next one fail.
                leaving = _address_space_bytes() > limit // 2
                connection.send_bytes(encode([*answer, leaving]))
                if leaving:
                    return


def _end_with_parent(parent: int) -> None:
    """End this process when its parent has ended, even in a task that sleeps. One that computes has its CPU limit."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_CHECK_S)
    os._exit(1)


def _answer(run: Callable[[Any], Any], task: Any) -> tuple[Status, Any]:
    try:
        return "done", run(task)
    except MemoryError:
        return "exceeded_memory", None
    except Exception:  # the fault boundary: any error of a task is counted as `failed`
        return "failed", None


def _address_space_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return 0
