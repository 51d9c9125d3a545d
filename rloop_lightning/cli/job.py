"""The processes (ranks) of `rloop-fit`: those that torchrun or srun has started, or that it starts itself.

    with Job(tell) as job:              # in rank 0, or the only process
        ...                             # the settings are read
        ranks = job.ranks(world_size)   # all have come together
        ...                             # the run
        job.code = code

The other ranks run follow.py. See system/rank_watch.py for how a fault of one ends all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Self

import torch
import torch.distributed as dist

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.system import dies_with_parent
from rloop_lightning.system.rank_watch import Fault, JobStore, RankWatch
from rloop_lightning.system.ranks import ALONE, Place, Ranks, join, launched_place

HANG_VARIABLE = "RLOOP_RANK_TIMEOUT_S"
"""Environment variable: seconds without progress after which a rank counts as hung."""

_DEFAULT_HANG_S = 1800.0
_THREADS = "OMP_NUM_THREADS"
_END_S = 15  # a process that was started here has so long to end by itself


class Job:
    """The ranks of this command, seen from rank 0.

    Args:
        tell: shows the user a fault of the job.

    Attributes:
        code: the exit code that the other ranks get at the end of the block.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.code = 1
        self._tell = tell
        self._place = launched_place()
        self._children: list[subprocess.Popen] = []
        self._watch: RankWatch | None = None
        self._environment = dict(os.environ)

    def __enter__(self) -> Self:
        if self._place is not None:
            store = JobStore(self._place.host, self._place.port, serves=self._place.serves)
            self._watch = self._new_watch(self._place, store)
        return self

    def __exit__(self, *_: object) -> None:
        if self._watch is not None:
            self._watch.end(self.code)
        if dist.is_initialized():
            dist.destroy_process_group()
        for child in self._children:
            try:
                child.wait(_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
        os.environ.clear()
        os.environ.update(self._environment)

    def ranks(self, size: int, nodes: int = 1) -> Ranks:
        """Come together with the other ranks, which are started if no launcher has done so.

        Args:
            size: the number of processes that the settings ask for.
            nodes: the machines among which they are.

        Raises:
            RunFault: the others do not come.
            UsageError: the launcher has started another number, or other machines need one.
        """
        if self._place is None and size == 1:
            return ALONE
        if self._place is None and nodes > 1:
            raise UsageError(
                f"--trainer.num_nodes {nodes}: torchrun or srun starts the processes of other machines; "
                "docs/clusters.md has the commands"
            )
        place = self._place or self._start_others(size)
        if place.size != size:
            raise UsageError(
                f"the launcher has started {place.size} processes, and --trainer.devices x --trainer.num_nodes is "
                f"{size}; give numbers whose product is {place.size}"
            )
        assert self._watch is not None
        return join(place, self._watch)

    def await_verdict(self) -> None:
        """After the loss of a connection to another rank: end with the reason, if the watch finds one."""
        if self._watch is not None:
            self._watch.await_verdict()

    def _start_others(self, size: int) -> Place:
        """Start the other processes on this machine."""
        store = JobStore("127.0.0.1", 0, serves=True)
        threads = max(1, (os.cpu_count() or 1) // size)
        if _THREADS not in os.environ:
            torch.set_num_threads(threads)
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "WORLD_SIZE": str(size),
            "NODE_RANK": "0",
            _THREADS: os.environ.get(_THREADS, str(threads)),
        }
        command = [sys.executable, "-IS", dies_with_parent.__file__, str(os.getpid())]  # also while it is starting
        command += [sys.executable, "-m", "rloop_lightning.cli.follow"]
        for rank in range(1, size):
            own = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In a process group of its own, so that Ctrl-C reaches rank 0 alone.
            self._children.append(subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, process_group=0))
        os.environ.update({**shared, "RANK": "0", "LOCAL_RANK": "0"})  # Lightning reads them
        place = Place(0, size, "127.0.0.1", store.port, serves=True)
        self._watch = self._new_watch(place, store)
        return place

    def _new_watch(self, place: Place, store: JobStore) -> RankWatch:
        return RankWatch(
            place.rank,
            place.size,
            store,
            hang_s=hang_seconds(),
            lost=self._lost_child,
            before_exit=self._kill_children,
            tell=self._tell,
        )

    def _lost_child(self) -> Fault | None:
        for rank, child in enumerate(self._children, start=1):
            if code := child.poll():
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has ended with exit code {code}"
                return Fault(f"rank {rank} (process {child.pid}) {how}", rank=rank, lost=True)
        return None

    def _kill_children(self) -> None:
        for child in self._children:
            child.kill()


def hang_seconds() -> float:
    """Seconds without progress after which a rank counts as hung."""
    try:
        return float(os.environ[HANG_VARIABLE])
    except (KeyError, ValueError):
        return _DEFAULT_HANG_S
