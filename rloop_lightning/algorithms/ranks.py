"""Reductions over processes (ranks). With one process they change nothing."""

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
    """The maximum over all ranks, in place."""
    if _several():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """The mean over all ranks, from this rank's sum and count, two scalars."""
    total, count = sum_over_ranks(torch.stack([total.double(), count.double()]))
    return total / count


def sum_gradients_over_ranks(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of every trained parameter over all ranks, in place."""
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
