"""Attention over a packed row by PyTorch's FlexAttention: any mask, soft caps and sinks; scores are never materialised.

attention = FlexibleAttention(packed, sees)
attention(queries, keys, values, scaling)       # [N, heads, D] to [N, heads, Dv]
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from rloop_lightning.model.packing import PackedBatch
from rloop_lightning.model.product_attention import Sees


class FlexibleAttention:
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

        def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            assert softcap is not None
            return softcap * torch.tanh(score / softcap)

        found, more = _kernel(queries.device.type)(
            *(part.transpose(0, 1)[None] for part in (queries, keys, values)),
            score_mod=None if softcap is None else capped,
            block_mask=self._block_mask,
            scale=scaling,
            enable_gqa=queries.shape[1] != keys.shape[1],
            return_aux=AuxRequest(lse=True),
        )  # [1, heads, N, Dv], and the scores' log-sum-exp [1, heads, N]
        if sinks is not None:  # a sink takes a share of the softmax and has no value
            found = found * torch.sigmoid(more.lse - sinks[:, None]).to(found.dtype)[..., None]
        return found[0].transpose(0, 1)

    @cached_property
    def _block_mask(self) -> BlockMask:
        packed = self._packed
        # Each filling token is a sequence of its own and sees nothing else.
        filling = len(packed.lengths) + torch.arange(packed.filling, device=packed.positions.device)
        sequences = torch.cat([packed.sequences, filling])
        prompt_of = torch.arange(len(packed.lengths) + packed.filling, device=packed.positions.device)
        prompt_of[packed.prompts : len(packed.lengths)] = packed.prompt_of_row
        positions, sees = packed.positions, self._sees

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = sequences[query]
            of_sequence = (sequences[key] == own) | (sequences[key] == prompt_of[own])
            return of_sequence & sees(batch, head, positions[query], positions[key])

        count = len(packed.input_ids)
        device = packed.positions.device
        return _make_mask(device.type)(visible, None, None, count, count, device=device)


@cache
def _make_mask(device: str) -> Any:
    """Compiled, it does not materialise the full mask."""
    return create_block_mask if device == "cpu" else torch.compile(create_block_mask)


@cache
def _kernel(device: str) -> Any:
    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=True)
