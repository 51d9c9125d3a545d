"""Metrics of an update, accumulated over micro-batches and ranks.

A metric is the mean over the loss tokens of a mini-batch. A metric named `..._max` is their maximum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rloop_lightning.algorithms.ranks import largest_over_ranks, sum_over_ranks
from rloop_lightning.types import RolloutBatch


def add(totals: dict[str, Tensor], sums: Mapping[str, Tensor], count: Tensor) -> None:
    """Accumulate a micro-batch's sums / count, or its maxima, into the totals."""
    for name, value in sums.items():
        if _is_max(name):
            totals[name] = torch.maximum(totals.get(name, value), value)
        else:
            totals[name] = totals.get(name, torch.zeros_like(value)) + value / count


def sums_in_loss(metrics: Mapping[str, Tensor], batch: RolloutBatch) -> dict[str, Tensor]:
    """Metrics of tokens or rows as sums, or maxima, over the loss tokens; scalars."""
    sums = {}
    for name, metric in metrics.items():
        values = metric.float().expand(batch.loss_mask.shape).masked_fill(~batch.loss_mask, 0.0)
        sums[name] = values.max() if _is_max(name) else values.sum()
    return sums


def over_ranks(totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The totals over all ranks, from this rank's."""
    reduce = {True: largest_over_ranks, False: sum_over_ranks}
    return {name: reduce[_is_max(name)](totals[name]) for name in sorted(totals)}


def over_updates(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The means, or maxima, of several updates' metrics."""
    collected: dict[str, list[Tensor]] = defaultdict(list)
    for metrics in updates:
        for name, value in metrics.items():
            collected[name].append(value)
    return {
        name: torch.stack(values).max() if _is_max(name) else torch.stack(values).mean()
        for name, values in collected.items()
    }


def _is_max(name: str) -> bool:
    return name.endswith("_max")
