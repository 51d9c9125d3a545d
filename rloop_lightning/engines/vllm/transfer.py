"""Weights from the trainer to vLLM's servers, through vLLM's weight-transfer API.

    sender = make_sender("shm", servers, policy.device)
    loop.wait(sender.begin(), watch)                       # once
    loop.wait(sender.send(NamedWeights(policy)), watch)   # for every version

The servers must be paused. `shm` is ours, for servers on this machine; `ipc` and `nccl` are vLLM's own backends for
GPUs, spoken here without vLLM. ipc and nccl have never been run: there was no GPU with vLLM to run them on.

shm and nccl take one tensor after the other, so that a sharded policy is never whole in the trainer; ipc keeps all of
them until the servers have read them.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from rloop_lightning.engines.vllm.client import Refused, Server
from rloop_lightning.errors import EngineError

Backend = Literal["shm", "ipc", "nccl"]


class Named(Protocol):
    """Weights with their names."""

    stay: bool
    """Whether a tensor stays as it is when the next one comes."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...

    def described(self) -> list[tuple[str, Tensor]]:
        """The names, and tensors of the same dtypes and shapes, in the same order."""


_ALIGNMENT = 64  # bytes
_UNFINISHED = "already active"  # what vLLM 0.30 says of an update
_CLOSING_S = 0.5  # in which a server closes the connection of a request that failed


class Sender(ABC):
    """The trainer's end of a backend.

    Args:
        servers: they all get the same weights.
        device: the trainer's, which another thread does not have by itself.
    """

    def __init__(self, servers: Sequence[Server], device: torch.device) -> None:
        self.servers = servers
        self.device = device

    async def begin(self) -> None:
        """Make the servers ready. Call it once."""
        await self._all("/init_weight_transfer_engine", {"init_info": {}})

    async def send(self, weights: Named, stamp: str) -> int:
        """Send all weights. Returns their bytes.

        Args:
            stamp: names them; `/weight_info` tells it.

        Raises:
            EngineError: a server can't take them.
        """
        layout = weights.described()
        await asyncio.gather(*map(self._start, self.servers))
        await self._move(weights, layout)
        await self._all("/finish_weight_update", {"weight_version": stamp})
        return sum(map(_bytes, layout))

    @abstractmethod
    async def _move(self, weights: Named, layout: list[tuple[str, Tensor]]) -> None:
        """Send the tensors, between the start and the end of an update.

        Args:
            layout: `weights.described()`.
        """

    @staticmethod
    async def _start(server: Server) -> None:
        """Start an update, in place of one that a killed trainer has left unfinished."""
        try:
            await server.post("/start_weight_update")
        except Refused as error:
            if _UNFINISHED not in str(error):
                raise
            await asyncio.sleep(_CLOSING_S)
            await server.post("/finish_weight_update")
            await server.post("/start_weight_update")

    async def _all(self, path: str, body: Any = None) -> None:
        await asyncio.gather(*(server.post(path, body) for server in self.servers))


class SharedMemorySender(Sender):
    """Through a memory file without a name, which the kernel frees with its last user, however that ends."""

    def __init__(self, servers: Sequence[Server], device: torch.device) -> None:
        super().__init__(servers, device)
        self._file: int | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    async def _move(self, weights: Named, layout: list[tuple[str, Tensor]]) -> None:
        sizes = [-(-_bytes(one) // _ALIGNMENT) * _ALIGNMENT for one in layout]
        starts = [0, *accumulate(sizes)]
        table = [
            [name, _dtype_name(weight), list(weight.shape), start]
            for (name, weight), start in zip(layout, starts, strict=False)
        ]
        buffer = self._room(starts[-1])
        for (_, weight), start in zip(weights, starts, strict=False):
            flat = weight.contiguous().reshape(-1).view(torch.uint8)
            buffer[start : start + len(flat)].copy_(flat)
        path = f"/proc/{os.getpid()}/fd/{self._file}"
        await self._all("/update_weights", {"update_info": {"path": path, "tensors": table}})

    def _room(self, size: int) -> Tensor:
        if self._file is None:
            self._file = os.memfd_create("rloop-weights")
            weakref.finalize(self, os.close, self._file)
        if len(self._buffer) < size:
            os.ftruncate(self._file, size)
            path = f"/proc/self/fd/{self._file}"
            self._buffer = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
        return self._buffer


class IpcSender(Sender):
    """Through handles to the trainer's own GPU memory, for servers on the same GPU."""

    async def begin(self) -> None:
        """Say that every tensor is sent by itself."""
        await self._all("/init_weight_transfer_engine", {"init_info": {"packed": False}})

    async def _move(self, weights: Named, layout: list[tuple[str, Tensor]]) -> None:
        from torch.multiprocessing.reductions import reduce_tensor

        kept = [weight.contiguous() if weights.stay else weight.clone() for _, weight in weights]
        card = str(torch.cuda.get_device_properties(kept[0].device).uuid)
        handles = [{card: reduce_tensor(weight)[1]} for weight in kept]
        # vLLM reads the handles as a pickle. It is made here and read there, never the other way.
        info = {**_listed(layout), "ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode()}
        torch.cuda.synchronize(self.device)
        await self._all("/update_weights", {"update_info": info})


class NcclSender(Sender):
    """By broadcasts to servers on other GPUs. The trainer is rank 0; the ranks of the servers follow."""

    async def begin(self) -> None:
        """Open the group of the trainer and all workers."""
        sizes = [(await server.get("/get_world_size"))["world_size"] for server in self.servers]
        unique = torch.cuda.nccl.unique_id()
        world = 1 + sum(sizes)
        requests = [
            server.post(
                "/init_weight_transfer_engine",
                {
                    "init_info": {
                        "rank_offset": 1 + sum(sizes[:number]),
                        "world_size": world,
                        "nccl_unique_id_b64": base64.b64encode(unique).decode(),
                        "packed": False,
                    }
                },
            )
            for number, server in enumerate(self.servers)
        ]
        opening = asyncio.to_thread(_open_group, world, unique, self.device)
        self._group, *_ = await asyncio.gather(opening, *requests)

    async def _move(self, weights: Named, layout: list[tuple[str, Tensor]]) -> None:
        received = self._all("/update_weights", {"update_info": _listed(layout)})
        await asyncio.gather(received, asyncio.to_thread(self._broadcast, weights))

    def _broadcast(self, weights: Named) -> None:
        with torch.cuda.device(self.device):
            for _, weight in weights:
                torch.cuda.nccl.broadcast([weight.contiguous()], root=0, comms=[self._group])
            torch.cuda.synchronize()


def _open_group(world: int, unique: bytes, device: torch.device) -> Any:
    """Join as rank 0, and do the one-element reduction with which vLLM's workers begin."""
    with torch.cuda.device(device):
        group = torch.cuda.nccl.init_rank(world, unique, 0)
        torch.cuda.nccl.all_reduce([torch.zeros(1, device="cuda")], comms=[group])
        return group


def make_sender(backend: str, servers: Sequence[Server], device: torch.device) -> Sender:
    """The trainer's end of a backend. Args: as of `Sender`.

    Raises:
        EngineError: it is not one that the trainer has.
    """
    senders: dict[str, type[Sender]] = {"shm": SharedMemorySender, "ipc": IpcSender, "nccl": NcclSender}
    if backend not in senders:
        raise EngineError(
            f"the vLLM server takes weights by {backend!r}; start it with --backend {' or '.join(senders)}"
        )
    return senders[backend](servers, device)


def _listed(named: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    return {
        "names": [name for name, _ in named],
        "dtype_names": [_dtype_name(weight) for _, weight in named],
        "shapes": [list(weight.shape) for _, weight in named],
    }


def _bytes(named: tuple[str, Tensor]) -> int:
    return named[1].numel() * named[1].element_size()


def _dtype_name(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")
