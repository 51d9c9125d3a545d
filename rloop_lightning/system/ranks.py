"""The processes (ranks) of a job, and what they tell each other. Rank 0 leads: it alone decides, reads and writes.

    ranks = join()                       # in every process; `ALONE` if the job has one
    ranks.send(message)                  # rank 0
    message = ranks.receive()            # the others
    parts = ranks.gather(own)            # all; rank 0 gets all values

A rank that dies, hangs or fails ends the job: each rank has a watch for that (rank_watch.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # torch does not say that it exports it

from rloop_lightning.errors import RunFault
from rloop_lightning.system.rank_watch import RankWatch, rank_name, told

_MESSAGES_WAIT = timedelta(days=30)
"""A rank waits for the leader's next message as long as the leader lives, such as while it filters a pool."""
_JOIN = timedelta(minutes=10)


@dataclass(frozen=True)
class Place:
    """A process's place in its job, as the launcher tells it.

    Args:
        rank: number of the process, from 0.
        size: processes of the job.
        host, port: of the store by which the processes find each other.
        serves: whether this process is to run that store; torchrun runs one itself.
    """

    rank: int
    size: int
    host: str
    port: int
    serves: bool


def launched_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that srun, torchrun, or `rloop-fit --trainer.devices N` gives this process; None if it is alone.

    Raises:
        ValueError: srun has spread the processes over machines as it likes.
    """
    if SLURMEnvironment.detect():
        try:
            slurm = SLURMEnvironment()
        except RuntimeError as error:
            tasks = environment["SLURM_NTASKS"]
            raise ValueError(
                f"srun --ntasks {tasks}: give --nodes and --ntasks-per-node instead (docs/clusters.md)"
            ) from error
        rank, size, host, port = slurm.global_rank(), slurm.world_size(), slurm.main_address, slurm.main_port
    else:
        try:
            rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        except (KeyError, ValueError):
            return None
    serves = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return Place(rank, size, host, port, serves) if size > 1 else None


class Ranks:
    """The ranks of a job, of which this process is one.

    Attributes:
        rank: this process's number, from 0.
        size: the number of processes.
        watch: watches the other ranks; None alone.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None, watch: RankWatch | None = None) -> None:
        self.rank = rank
        self.size = size
        self.watch = watch
        self._group = group

    @property
    def several(self) -> bool:
        return self.size > 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def send(self, message: Any) -> None:
        """Send a message to all other ranks. Alone, there is nobody to tell."""
        if self.several:
            self.beat()
            dist.broadcast_object_list([message], src=0, group=self._group)

    def receive(self) -> Any:
        """Wait for the leader's next message."""
        box: list[Any] = [None]
        with self._waiting():
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on rank 0; an empty list on the others.

        A rank whose work failed gives a `RankFault` in place of its value.

        Raises:
            RunFault: on rank 0, a rank's work failed; names the rank.
        """
        if not self.several:
            return [value]
        values: list[Any] | None = [None] * self.size if self.leads else None
        with self._waiting():
            dist.gather_object(value, values, dst=0, group=self._group)
        for one in values or []:
            if isinstance(one, RankFault):
                raise RunFault(one.text)
        return values or []

    def broadcast_tensors(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give rank 0's values of these tensors to all ranks, in place."""
        if self.several:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)
                self.beat()

    def share(self, count: int) -> tuple[int, int]:
        """Begin and end of this rank's share of `count` items in a row."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def fault(self, error: BaseException) -> RankFault:
        """An error of this rank, to be raised by the leader."""
        return RankFault(f"{rank_name(self.rank)}: {told(error)}")

    def beat(self) -> None:
        """This rank has made progress (rank_watch.py)."""
        if self.watch is not None:
            self.watch.beat()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        if self.watch is None:
            yield
            return
        with self.watch.waiting():
            yield


@dataclass(frozen=True)
class RankFault:
    """Why a rank could not do its work."""

    text: str


ALONE = Ranks()
"""The ranks of a run in one process."""


def join(place: Place, watch: RankWatch) -> Ranks:
    """Join the other processes of the job. All of them call it.

    Args:
        place: of this process.
        watch: the watch of this process, which has begun.

    Raises:
        RunFault: the others did not come in time.
    """
    store = PrefixStore("groups", watch.store.client())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=_JOIN)
        group = dist.new_group(backend="gloo", timeout=_MESSAGES_WAIT)
    except RuntimeError as error:
        raise RunFault(
            f"the {place.size} ranks did not come together within {_JOIN.seconds // 60} minutes: {error}"
        ) from error
    return Ranks(place.rank, place.size, group, watch)
