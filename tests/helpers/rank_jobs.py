"""Runs `rloop-fit` in several processes (ranks), as torchrun or srun would start them, with a fault in any of them.

    job = run_ranks(2, tiny.config, out, faults={1: Kill("module:function", 3)})
    job.codes, job.said

The ranks come from the fork server of killing.py, so that they cost no start-up. `start_job` starts the command itself.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from killing import _CONTEXT, Fault, Kill, begin_process

LIMIT_S = 240.0
"""A job that runs longer hangs. Each rank prints its stacks and ends."""

LOST_AFTER_S = 20.0
"""Instead of the product's half a minute. On a busy machine, a rank may be silent for some seconds."""


@dataclass(frozen=True)
class Job:
    """A job that has ended.

    Args:
        codes: the exit codes of its ranks.
        logs: what they wrote to stdout and stderr.
        seconds: how long it took.
    """

    codes: list[int]
    logs: list[str]
    seconds: float

    @property
    def said(self) -> str:
        """What all ranks wrote."""
        return "\n".join(f"--- rank {rank}\n{log}" for rank, log in enumerate(self.logs))

    @property
    def errors(self) -> list[str]:
        """The job's error messages, one a line."""
        return [line for line in self.said.splitlines() if line.startswith("rloop-fit: error:")]


def run_ranks(
    size: int,
    arguments: Sequence[str],
    folder: Path,
    *,
    faults: Mapping[int, Fault] | None = None,
    nodes: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Job:
    """Run a job to its end.

    Args:
        size: the number of processes.
        arguments: of `rloop-fit`; `--trainer.devices` among them only if it is to be another number.
        folder: takes the logs.
        faults: what befalls a rank, by its number.
        nodes: machines to play, with as many processes each.
        environment: further variables.
    """
    started = time.monotonic()
    processes, logs = begin_ranks(size, arguments, folder, faults=faults, nodes=nodes, environment=environment)
    for process in processes:
        process.join(LIMIT_S + 10)
        if process.exitcode is None:
            process.kill()
            process.join()
    codes = [process.exitcode for process in processes]
    return Job(codes, [log.read_text(errors="replace") for log in logs], time.monotonic() - started)


def begin_ranks(
    size: int,
    arguments: Sequence[str],
    folder: Path,
    *,
    faults: Mapping[int, Fault] | None = None,
    nodes: int = 1,
    environment: Mapping[str, str] | None = None,
    lost_after_s: float | None = LOST_AFTER_S,
) -> tuple[list[Any], list[Path]]:
    """As `run_ranks`, but returns at once: the processes, and their logs.

    Args:
        lost_after_s: seconds of silence after which a rank is lost; None leaves the product's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    local = size // nodes
    devices = ["--trainer.devices", str(local), "--trainer.num_nodes", str(nodes)] if size > 1 else []
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    processes, logs = [], []
    for rank in range(size):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank % local), "NODE_RANK": str(rank // local)}
        variables = {**shared, **own, **(environment or {})} if size > 1 else dict(environment or {})
        logs.append(folder / f"rank-{rank}.log")
        work = ([*devices, *arguments], variables, logs[-1], (faults or {}).get(rank), lost_after_s)
        processes.append(_CONTEXT.Process(target=_rank, args=work, daemon=True))
        processes[-1].start()
    return processes, logs


def _rank(
    arguments: list[str], variables: Mapping[str, str], log: Path, fault: Fault | None, lost_after_s: float | None
) -> None:
    from rloop_lightning.cli.main import main
    from rloop_lightning.system import rank_watch

    os.setpgrp()
    begin_process()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(variables)
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    if lost_after_s is not None:
        rank_watch.LOST_AFTER_S = lost_after_s
    if fault is not None:
        fault.arm()
    sys.exit(main(arguments))


@dataclass(frozen=True)
class Raises(Kill):
    """An error is raised.

    Args:
        error: the exception.
    """

    error: BaseException = field(default_factory=RuntimeError)

    def strike(self) -> None:
        raise self.error


@dataclass(frozen=True)
class Hangs(Kill):
    """The rank goes on in ten minutes."""

    def strike(self) -> None:
        time.sleep(600)


def start_job(
    arguments: Sequence[str], log: Path, launcher: Sequence[str] = (), imports: Path | None = None
) -> subprocess.Popen:
    """Start the command itself, in processes that import all anew.

    Args:
        arguments: of `rloop-fit`.
        log: takes what it writes.
        launcher: a command that starts the ranks, such as torchrun's; the command starts them itself without one.
        imports: a folder whose modules come first.
    """
    command = [*(launcher or [sys.executable]), "-m", "rloop_lightning", *arguments]
    places = [*([str(imports)] if imports else []), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=given)


def processes_of(folder: Path) -> list[int]:
    """Ids of the processes that have a file as stdout or stderr in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            targets = [os.readlink(process / "fd" / number) for number in ("1", "2")]
        except OSError:  # it has ended, or is another user's
            continue
        if any(target.startswith(str(folder)) for target in targets):
            found.append(int(process.name))
    return found


def wait_until_ended(folder: Path, seconds: float) -> list[int]:
    """The processes of a folder that are left after some seconds; returns at once when none is."""
    until = time.monotonic() + seconds
    while (left := processes_of(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def kill_all(processes: Sequence[int]) -> None:
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:  # it has ended
            continue


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def one_error(job: Job) -> str:
    """The one message of a job that ended by a fault; all its ranks have exit code 1, or were killed."""
    assert set(job.codes) <= {1, -signal.SIGKILL}, job.said
    assert "Traceback" not in job.said, job.said
    assert job.errors, job.said
    return "\n".join(job.errors)


Settings = Mapping[str, Mapping[str, Any]]
