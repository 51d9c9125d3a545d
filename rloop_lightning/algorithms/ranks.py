"""Reductions over processes (ranks). With one process they change nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def rank_and_world() -> tuple[int, int]:
    """This process's number, from 0, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)


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


def decided_by_rank_0(flag: bool) -> bool:
    """Rank 0's value of a flag on which what all ranks do next depends."""
    if not _several():
        return flag
    box = [flag]
    dist.broadcast_object_list(box)
    return box[0]


def sum_gradients_over_ranks(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of every trained parameter over all ranks, in at least float32.

    Those of sharded parameters are sums already (sharding.py).
    """
    if not _several():
        return
    for parameter in parameters:
        if not parameter.requires_grad or isinstance(parameter, DTensor):
            continue
        if parameter.grad is None:  # an expert that no token of this rank was routed to
            parameter.grad = torch.zeros_like(parameter)
        total = parameter.grad.to(torch.promote_types(parameter.dtype, torch.float32))
        dist.all_reduce(total)
        parameter.grad = total.to(parameter.dtype)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
