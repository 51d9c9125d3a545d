"""Sums over processes (ranks); with one process, nothing happens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if _several():
        dist.all_reduce(values)
    return values


def largest_over_ranks(values: Tensor) -> Tensor:
    """The largest over all ranks, in place."""
    if _several():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """A mean over what all ranks hold, from this rank's sum and count, two scalars."""
    total, count = sum_over_ranks(torch.stack([total.double(), count.double()]))
    return total / count


def sum_gradients_over_ranks(parameters: Iterable[nn.Parameter]) -> None:
    """Give every trained parameter the sum of its gradients over all ranks."""
    if not _several():
        return
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:  # an expert that no token of this rank was routed to
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
