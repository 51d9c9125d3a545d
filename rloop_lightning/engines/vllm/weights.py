"""A policy's weights under the names of its Hugging Face model, and whether they have changed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from rloop_lightning.model.on_ranks import announce
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import is_sharded, local
from rloop_lightning.model.whole_weights import described, plain_weights
from rloop_lightning.system.ranks import ALONE, Ranks

_CHUNK = 2**20  # numbers hashed at once
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number


class NamedWeights:
    """The weights that a policy computes with, under the names of its Hugging Face model (whole_weights.py).

    Each iteration gives (name, tensor), in the order of `described`. Those of a sharded policy are gathered: all ranks
    iterate, to the end, and a tensor is valid until the next one.

    Args:
        policy: on the device where its weights are.
        ranks: those that follow an iteration of this one; ALONE if each iterates by itself.
    """

    def __init__(self, policy: Policy, ranks: Ranks = ALONE) -> None:
        self._policy = policy
        self._ranks = ranks
        self.stay = not is_sharded(policy)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        announce(self._ranks, self._policy, _follow)
        with _current(self._policy.device):
            for weights in plain_weights(self._policy):
                yield from weights.items()

    def described(self) -> list[tuple[str, Tensor]]:
        """The names, with tensors of the same dtypes and shapes on the device meta. Nothing is gathered."""
        return list(described(self._policy).items())


def _follow(policy: Policy) -> None:
    """Take part in an iteration."""
    for _ in plain_weights(policy):
        pass


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one in the block: each thread begins with the first of the machine."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def trained_weights(policy: Policy) -> Iterator[Tensor]:
    """The weights that training can change; with an adapter, its own."""
    if policy.adapter is not None:
        yield from policy.adapter.parameters.values()
    else:
        yield from policy.model.parameters()


@torch.no_grad()
def fingerprint(policy: Policy) -> int:
    """A number that differs for weights that differ in any bit, but for a chance of about 2**-60.

    A sum over all weights' bits, each multiplied by a fixed random number of its place, modulo 2**64. It takes one pass
    over the weights and no memory to speak of. All ranks of a sharded policy call it, and get the same number.
    """
    total, place = 0, 1
    for weight in trained_weights(policy):
        bits = local(weight.detach()).reshape(-1).view(_INTEGERS[weight.element_size()])
        for chunk in bits.split(_CHUNK):
            multipliers = _multipliers(chunk.device)[: len(chunk)]
            total += place * int((chunk.long() * multipliers).sum())
            place += 2  # odd, so that no bit of the sum is lost
    total %= 2**64
    if not is_sharded(policy):
        return total
    parts = torch.tensor(total - 2**63, device=policy.device)  # of each rank, as a signed number
    torch.distributed.all_reduce(parts)
    return int(parts) % 2**64


@functools.cache
def _multipliers(device: torch.device) -> Tensor:
    """Fixed random numbers, 8 MiB."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (_CHUNK,), generator=generator).to(device)
