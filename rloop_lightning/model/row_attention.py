"""Attention over a packed row on a GPU, by the fastest kernel that computes its mask.

    attention = RowAttention(packed, sees)
    attention(queries, keys, values, scaling)       # [N, heads, D] to [N, heads, Dv]

In half precision, causal masks and sliding windows use a varlen kernel; on recent GPUs, causal masks use a dense kernel
if padding does not cost more than it gains. Everything else (float32, other masks, soft caps, sinks, values narrower
than keys) is computed in blocks, or by PyTorch's FlexAttention for long rollouts, whose scores are then never
materialised.
"""

from __future__ import annotations

import logging
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from rloop_lightning.model.block_attention import BlockAttention
from rloop_lightning.model.flexible_attention import FlexibleAttention
from rloop_lightning.model.packing import PackedBatch
from rloop_lightning.model.product_attention import Sees
from rloop_lightning.model.square_attention import SquareAttention
from rloop_lightning.model.varlen_attention import VarlenAttention, installed_kernel, varlen_operations
from rloop_lightning.system.terminal import cause

# Queries per chunk when the mask is classified, so that the N x N mask is never materialised.
_QUERIES_AT_ONCE = 1024
_HALF_PRECISION = (torch.bfloat16, torch.float16)
# The largest rollout, in tokens, whose scores are materialised. FlexAttention has to be compiled first.
_LONGEST_FOR_BLOCKS = 2048
# Pairs of tokens that dense squares may compute, by those that are needed: about how much faster their kernel is.
_WASTE = 1.5

_log = logging.getLogger(__name__)
_flexible_failures: list[Exception] = []


class RowAttention:
    """Attention over a packed batch. All layers with the same mask share one instance."""

    def __init__(self, packed: PackedBatch, sees: Sees) -> None:
        self._packed = packed
        self._sees = sees

    def __call__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """The attention output, [N, heads, Dv]; arguments as for `BlockAttention`."""
        plain = softcap is None and sinks is None and keys.shape[2] == values.shape[2]
        if plain and queries.dtype in _HALF_PRECISION and self._window is not None:
            if self._window == 0 and _has_fast_squares(queries.device) and self._squares.waste < _WASTE:
                return self._squares(queries, keys, values, scaling)
            if self._varlen is not None:
                return self._varlen(queries, keys, values, scaling)
        if self._longest > _LONGEST_FOR_BLOCKS and not _flexible_failures:
            try:
                return self._flexible(queries, keys, values, scaling, softcap, sinks)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # the compiler may raise anything
                _flexible_failures.append(error)
                _log.warning(
                    "FlexAttention does not work here, so attention takes memory with the square of the longest "
                    f"rollout: {cause(error)}"
                )
        return self._blocks(queries, keys, values, scaling, softcap, sinks)

    @cached_property
    def _longest(self) -> int:
        """The longest rollout, tokens."""
        return int(self._packed.positions.max()) + 1

    @cached_property
    def _window(self) -> int | None:
        return window_of(self._sees, self._longest, self._packed.positions.device)

    @cached_property
    def _squares(self) -> SquareAttention:
        return SquareAttention(self._packed)

    @cached_property
    def _varlen(self) -> VarlenAttention | None:
        kernel = installed_kernel()
        return None if kernel is None or self._window is None else VarlenAttention(self._packed, self._window, kernel)

    @cached_property
    def _blocks(self) -> BlockAttention:
        return BlockAttention(self._packed, self._sees)

    @cached_property
    def _flexible(self) -> FlexibleAttention:
        return FlexibleAttention(self._packed, self._sees)


def window_of(sees: Sees, longest: int, device: torch.device) -> int | None:
    """The window of a sliding-window mask, 0 for a causal mask, None for any other mask.

    Args:
        longest: tokens of the longest rollout; the mask is only known up to there.
    """
    key = torch.arange(longest, device=device)
    zero, counts = key.new_zeros(()), []
    for query in key.split(_QUERIES_AT_ONCE):
        seen = sees(zero, zero, query[:, None], key[None])
        count = seen.sum(1)
        in_a_row = seen == ((key[None] <= query[:, None]) & (key[None] > query[:, None] - count[:, None]))
        if not in_a_row.all():
            return None
        counts.append(count)
    count = torch.cat(counts)
    if torch.equal(count, key + 1):
        return 0
    widest = int(count[-1])
    return widest if torch.equal(count, (key + 1).clamp(max=widest)) else None


@cache
def kernel_operations() -> list[Any]:
    """The operations of the kernels for long rollouts. Their outputs are small beside the time that they take."""
    dense = ("_scaled_dot_product_cudnn_attention", "_cudnn_attention_forward")
    return [
        *varlen_operations(),
        *(getattr(torch.ops.aten, name).default for name in dense if hasattr(torch.ops.aten, name)),
    ]


@cache
def _has_fast_squares(device: torch.device) -> bool:
    """Whether PyTorch takes cuDNN's kernel for dense causal attention: on Hopper and newer."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
