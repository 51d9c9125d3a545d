"""Runs `rloop-fit` in processes that are killed, signalled or out of disk at chosen moments; used by several tests.

A fork server imports the package once, so that a run costs no start-up. It never computes anything itself: OpenMP's
threads would not survive the fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import sleep
from typing import Any, Protocol

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
# What every process would import. Installed modules alone: Python 3.11's fork server does not get this process's path.
_CONTEXT.set_forkserver_preload(
    [
        "math_verify",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "pandas",  # by PyArrow, where it is installed
        "pyarrow.dataset",
        "pyarrow.pandas_compat",
        "pyarrow.parquet",
        "rloop_lightning.algorithms.dapo",
        "rloop_lightning.algorithms.rft",
        "rloop_lightning.cli.main",
        "rloop_lightning.data.countdown",
        "rloop_lightning.engines.torch_engine",
        "rloop_lightning.rewards.countdown",
        "rloop_lightning.rewards.weighted",
        "s3fs",  # by Lightning, where it is installed
        "sympy.combinatorics",
        "sympy.tensor.tensor",
        "tensorboard.plugins.hparams.api_pb2",
        "tensorboard.plugins.hparams.plugin_data_pb2",
        "torch.utils.serialization.config",
        "torch.utils.tensorboard",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.qwen2.modeling_qwen2",
        "transformers.models.qwen2.tokenization_qwen2",
    ]
)


def begin_process() -> None:
    """What a process of the fork server does first.

    The garbage collector need not look through what the server imported, which takes a twelfth of a tiny run.
    """
    torch.set_num_threads(1)
    gc.freeze()


class Fault(Protocol):
    """What befalls a process."""

    def arm(self) -> None:
        """Called in the process, before it does anything."""


@dataclass(frozen=True)
class Kill:
    """When a process is killed: before a call of a function.

    Args:
        function: "module:name" or "module:Class.name".
        call: which call, from 1.
        argument: count only the calls of which one positional argument holds this text.
    """

    function: str
    call: int
    argument: str = ""

    def arm(self) -> None:
        module, _, path = self.function.partition(":")
        *owners, name = path.split(".")
        holder: Any = importlib.import_module(module)
        for owner in owners:
            holder = getattr(holder, owner)
        original = getattr(holder, name)
        calls = 0

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            counts = any(self.argument in str(argument) for argument in args)
            calls += counts
            if counts and calls == self.call:
                self.strike()
            return original(*args, **kwargs)

        setattr(holder, name, wrapper)

    def strike(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Signal(Kill):
    """As Kill, but with a signal, which the whole process group gets, as from a terminal.

    Args:
        number: of the signal.
        times: how often it comes.
    """

    number: int = signal.SIGTERM
    times: int = 1

    def strike(self) -> None:
        for time in range(self.times):
            sleep(1.0 if time else 0.0)  # or both would be taken for one
            os.killpg(os.getpgrp(), self.number)


@dataclass(frozen=True)
class FullDisk(Kill):
    """From then on, the system refuses to write a file beyond its first so many bytes."""

    bytes: int = 0

    def strike(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, resource.RLIM_INFINITY))


@dataclass(frozen=True)
class Pause(Kill):
    """The process stops there until it gets SIGCONT or SIGKILL."""

    def strike(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


@dataclass(frozen=True)
class Environment:
    """Environment variables of the process, which a fork server's child would not get, and what befalls it besides.

    Args:
        variables: by name.
        then: the other fault.
    """

    variables: Mapping[str, str]
    then: Fault | None = None

    def arm(self) -> None:
        os.environ.update(self.variables)
        if self.then is not None:
            self.then.arm()


@dataclass(frozen=True)
class Patch:
    """Another value of a module's name in the process, and what befalls it besides.

    Args:
        place: "module:name".
        value: its value.
        then: the other fault.
    """

    place: str
    value: Any
    then: Fault

    def arm(self) -> None:
        module, _, name = self.place.partition(":")
        setattr(importlib.import_module(module), name, self.value)
        self.then.arm()


def run_fit(
    arguments: list[str],
    log: Path,
    kill: Fault | None = None,
    *,
    debug: bool = True,
    draws: bool = True,
    command: str = "rloop_lightning.cli.main",
) -> int:
    """Exit code of `rloop-fit` in a process of its own, on one thread; -9 where it was killed.

    Args:
        draws: whether it draws plots, which take a third of a tiny run's time.
        command: the module of the command, for another than `rloop-fit`.
    """
    reader, writer = _CONTEXT.Pipe(duplex=False)  # a full disk does not keep the process from telling of it
    given = [*arguments, *(["--debug"] if debug else [])]
    process = _CONTEXT.Process(target=_fit, args=(given, writer, kill, draws, command))
    process.start()
    writer.close()
    with log.open("ab") as file, reader:
        while said := os.read(reader.fileno(), 1 << 16):
            file.write(said)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _fit(arguments: list[str], output: Connection, kill: Fault | None, draws: bool, command: str) -> None:
    os.setpgrp()
    os.fsync = lambda descriptor: None  # only a power cut loses what is not on the disk; it takes a tenth of a tiny run
    begin_process()
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    with contextlib.nullcontext() if draws else nothing_drawn():
        if kill is not None:
            kill.arm()
        sys.exit(importlib.import_module(command).main(arguments))


@contextlib.contextmanager
def nothing_drawn() -> Iterator[None]:
    """Runs of this process draw no plots."""
    from rloop_lightning.run import results

    drawing = results.write_plots, results.write_pool_plot
    results.write_plots = results.write_pool_plot = lambda *args, **kwargs: []
    try:
        yield
    finally:
        results.write_plots, results.write_pool_plot = drawing


def run_main(
    arguments: list[str], log: Path, patches: Mapping[str, Any] | None = None, largest_file: int | None = None
) -> int:
    """Exit code of `rloop-fit` in a process of its own, as a user calls it.

    Args:
        log: takes what is written to stdout and stderr.
        patches: what stands there for something else, by "module:name".
        largest_file: bytes that a file may hold, in place of a full disk.
    """
    process = _CONTEXT.Process(target=_main, args=(arguments, log, patches or {}, largest_file))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _main(arguments: list[str], log: Path, patches: Mapping[str, Any], largest_file: int | None) -> None:
    begin_process()
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    for place, value in patches.items():
        module, _, name = place.partition(":")
        setattr(importlib.import_module(module), name, value)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    from rloop_lightning.cli.main import main

    sys.exit(main(arguments))


def wait_until_paused(process: int) -> None:
    """Return once the process of this id is stopped."""
    while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        sleep(0.01)
