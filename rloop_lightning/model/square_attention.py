"""Causal attention over packed rollouts by PyTorch's dense kernel: whole rollouts, padded to squares.

    attention = SquareAttention(packed)
    if attention.waste < 1.5: attention(queries, keys, values, scaling)     # [N, heads, D] to [N, heads, Dv]

For dense squares, PyTorch takes cuDNN's kernel on recent GPUs. On an H100 it computes 540 to 600 TFLOP/s, the varlen
kernel 300 to 350. In return, a prompt's attention is computed for each of its rollouts, and rollouts of similar length
are padded to the longest. Padding is on the right, where a causal mask hides it from all other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from rloop_lightning.model.packing import PackedBatch

# Rollouts of at least this share of a square's length are padded to it.
_SIMILAR = 0.85


class SquareAttention:
    """Attention over a packed batch with a causal mask. All layers share one instance."""

    def __init__(self, packed: PackedBatch) -> None:
        self._packed = packed
        prompts = packed.lengths[: packed.prompts][packed.prompt_of_row]
        completions = packed.lengths[packed.prompts :]
        lengths, starts, owners = torch.stack([prompts + completions, prompts, packed.prompt_of_row]).tolist()
        self._squares = _squares(lengths)
        attended = sum(length * (length + 1) // 2 for length in lengths)
        prompt_pairs = dict(zip(owners, (start * (start + 1) // 2 for start in starts), strict=True))
        repeated = sum(prompt_pairs[owner] for owner in owners) - sum(prompt_pairs.values())
        computed = sum(len(rows) * length * (length + 1) // 2 for rows, length in self._squares)
        self.waste = computed / (attended - repeated)
        """Pairs of tokens that are computed, by those that are needed."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """The attention output, [N, heads, Dv].

        Args:
            queries: [N, heads, D].
            keys: [N, kv_heads, D].
            values: [N, kv_heads, Dv].
            scaling: factor of the scores.
        """
        index = self._index
        spread = [_Spread.apply(part, index) for part in (queries, keys, values)]  # [slots, heads, D]
        found, start = [], 0
        for rows, length in self._squares:
            shape, end = (len(rows), length), start + len(rows) * length
            query, key, value = (part[start:end].unflatten(0, shape).transpose(1, 2) for part in spread)
            square = scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
            )  # [R, heads, L, Dv]
            found.append(square.transpose(1, 2).flatten(0, 1))
            start = end
        return pad(_Collect.apply(torch.cat(found), index), (0, 0, 0, 0, 0, self._packed.filling))

    @cached_property
    def _index(self) -> _Index:
        packed = self._packed
        places = packed.places(max(length for _, length in self._squares))  # [B, columns]
        tokens = torch.cat([places[rows, :length].flatten() for rows, length in self._squares])
        bases = torch.zeros_like(packed.prompt_of_row)
        start = 0
        for rows, length in self._squares:
            bases[rows] = start + length * torch.arange(len(rows), device=bases.device)
            start += len(rows) * length
        slots = bases[packed.rows] + packed.positions[: packed.tokens]
        again = torch.ones_like(tokens, dtype=torch.bool)
        again[slots] = False
        starts = packed.lengths[: packed.prompts].sum()  # of the completions; padding repeats one of their tokens
        return _Index(tokens, slots, (again & (tokens < starts)).nonzero()[:, 0])


@dataclass(frozen=True)
class _Index:
    """Where the tokens of a packed row of N stand in the slots of all squares, one after another."""

    tokens: Tensor  # [slots] int64, the token of each slot; padding repeats a rollout's last token
    slots: Tensor  # [N] int64, the slot of each token; of a prompt's tokens, those of its first rollout
    again: Tensor  # the slots that hold a prompt's tokens once more


class _Spread(torch.autograd.Function):
    """Copies packed tokens to their slots. The backward pass gathers, where autograd's own would add slot by slot."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, index: _Index) -> Tensor:
        ctx.index, ctx.count = index, len(part)
        return part.index_select(0, index.tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        index = ctx.index
        own = pad(grad.index_select(0, index.slots), (0, 0, 0, 0, 0, ctx.count - len(index.slots)))
        if len(index.again):
            own.index_add_(0, index.tokens[index.again], grad.index_select(0, index.again))
        return own, None


class _Collect(torch.autograd.Function):
    """Takes each token's output from its slot. No slot is taken twice, so the backward pass copies."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, index: _Index) -> Tensor:
        ctx.index = index
        return found.index_select(0, index.slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        index = ctx.index
        return grad.new_zeros(len(index.tokens), *grad.shape[1:]).index_copy_(0, index.slots, grad), None


def _squares(lengths: list[int]) -> list[tuple[list[int], int]]:
    """Rows of similar length, each group with the length of its longest row."""
    squares: list[tuple[list[int], int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not squares or lengths[row] < _SIMILAR * squares[-1][1]:
            squares.append(([], lengths[row]))
        squares[-1][0].append(row)
    return squares
