"""A policy's weights under the names of its Hugging Face model, and whether they have changed."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from rloop_lightning.model.lora import merged
from rloop_lightning.model.policy import Policy

_CHUNK = 2**20  # numbers hashed at once
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number


@torch.no_grad()
def named_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The weights that the policy computes with, without gradients: an adapter merged, 4-bit weights dequantised."""
    if policy.adapter is not None:
        yield from merged(policy.adapter).items()
        return
    for name, weight in policy.model.named_parameters():
        yield name, weight.detach()


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
    over the weights and no memory to speak of.
    """
    total, place = 0, 1
    for weight in trained_weights(policy):
        bits = weight.detach().reshape(-1).view(_INTEGERS[weight.element_size()])
        for chunk in bits.split(_CHUNK):
            multipliers = _multipliers(chunk.device)[: len(chunk)]
            total += place * int((chunk.long() * multipliers).sum())
            place += 2  # odd, so that no bit of the sum is lost
    return total % 2**64


@functools.cache
def _multipliers(device: torch.device) -> Tensor:
    """Fixed random numbers, 8 MiB."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (_CHUNK,), generator=generator).to(device)
