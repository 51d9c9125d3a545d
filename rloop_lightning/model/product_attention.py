"""Attention by two batched products and a softmax per block, with a hand-written backward pass.

    product_attention(queries, keys, values, blocks, places, slots, scaling)    # [N, heads, D] to [N, heads, Dv]

Autograd would store every gathered copy and accumulate the gradients of prompt keys one completion at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""A mask function of transformers: (batch, head, query position, key position) to whether the query sees the key."""


@dataclass(frozen=True)
class Block:
    """R sequences whose attention is computed together. Copies of the first sequence round R up."""

    queries: Tensor  # [R * T] int64, indices in the packed row, padded with each sequence's first token
    keys: Tensor  # [R * S] int64, indices in the packed row
    query_positions: Tensor  # [R, T] int64
    key_positions: Tensor  # [R, S] int64, negative for padding

    @property
    def shape(self) -> tuple[int, int, int]:
        """R, T and S."""
        return (*self.query_positions.shape, self.key_positions.shape[1])

    def bias(self, sees: Sees, dtype: torch.dtype) -> Tensor:
        """The additive attention bias [R, T, S]: 0 where a query sees a key, else a large negative number."""
        query, key = self.query_positions[:, :, None], self.key_positions[:, None]
        zero = query.new_zeros(())
        seen = sees(zero, zero, query, key) & (key >= 0)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -1e9)


def product_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Sequence[tuple[Block, Tensor]],
    places: Tensor,
    slots: int,
    scaling: float,
) -> Tensor:
    """The attention output, [N, heads, Dv].

    Args:
        queries: [N, heads, D].
        keys: [N, kv_heads, D].
        values: [N, kv_heads, Dv].
        blocks: each with its additive bias [kv_heads * R, heads per kv_head * T, S].
        places: [N], index of each token in the concatenated, padded block queries.
        slots: the number of queries of all blocks, plus the filling tokens.
        scaling: factor of the scores.
    """
    return _ProductAttention.apply(queries, keys, values, blocks, places, slots, scaling)


class _ProductAttention(torch.autograd.Function):
    """Batched products and a softmax for each block in turn.

    In the backward pass, a token collects gradients from its own slot and from the completions that follow its prompt.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, blocks: Any, places: Tensor, slots: int, scale: float
    ) -> Tensor:
        heads, kv_heads = queries.shape[1], keys.shape[1]
        sharing, width, value_width = heads // kv_heads, queries.shape[2], values.shape[2]
        queries, keys, values = (part.transpose(0, 1).contiguous() for part in (queries, keys, values))
        found, kept = queries.new_zeros(slots, kv_heads, sharing, value_width), []
        for (block, bias), part in zip(blocks, _parts(blocks, found), strict=True):
            query, key, value = _gathered(block, queries.view(kv_heads, sharing, -1, width), keys, values)
            weights = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale).softmax(-1)
            part.copy_(torch.bmm(weights, value).view(part.shape))
            kept += [query, key, value, weights]
        ctx.save_for_backward(places, *kept)
        ctx.blocks, ctx.slots, ctx.scale = blocks, slots, scale
        ctx.query_shape, ctx.value_shape = (kv_heads, sharing, width), (kv_heads, sharing, value_width)
        return found.flatten(1, 2).index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        places, *kept = ctx.saved_tensors
        kv_heads, _, width = ctx.query_shape
        value_width = ctx.value_shape[-1]
        found = grad.new_zeros(ctx.slots, *ctx.value_shape)
        queries = grad.new_zeros(ctx.slots, *ctx.query_shape)
        keys, values = (grad.new_zeros(ctx.slots, kv_heads, 1, size) for size in (width, value_width))
        prompt_keys, prompt_values = (grad.new_zeros(len(places), kv_heads, size) for size in (width, value_width))
        found.flatten(1, 2).index_copy_(0, places, grad)
        parts = zip(*(_parts(ctx.blocks, by_slot) for by_slot in (found, queries, keys, values)), strict=True)
        for (block, _), (found_part, query_part, key_part, value_part) in zip(ctx.blocks, parts, strict=True):
            query, key, value, weights = kept[:4]
            del kept[:4]
            grad_found = found_part.reshape(*query.shape[:2], value_width)
            grad_weights = torch.bmm(grad_found, value.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(ctx.scale)
            query_part.copy_(torch.bmm(grad_scores, key).view(query_part.shape))
            _add_keys(block, torch.bmm(grad_scores.transpose(1, 2), query), key_part, prompt_keys)
            _add_keys(block, torch.bmm(weights.transpose(1, 2), grad_found), value_part, prompt_values)
        queries, keys, values = (by_slot.flatten(1, 2).index_select(0, places) for by_slot in (queries, keys, values))
        return queries, keys.add_(prompt_keys), values.add_(prompt_values), None, None, None, None


def _gathered(block: Block, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A block's queries [kv_heads * R, heads per kv_head * T, D], keys and values [kv_heads * R, S, ...].

    Args: queries [kv_heads, heads per kv_head, N, D]; keys, values [kv_heads, N, ...].
    """
    rows, length, key_length = block.shape
    heads, sharing, _, width = queries.shape
    query = queries.index_select(2, block.queries).view(heads, sharing, rows, length, width).transpose(1, 2)
    key, value = (part.index_select(1, block.keys).view(-1, key_length, part.shape[2]) for part in (keys, values))
    return query.reshape(heads * rows, sharing * length, width), key, value


def _parts(blocks: Any, by_slot: Tensor) -> Iterator[Tensor]:
    """Each block's slice of `by_slot` [slots, kv_heads, heads per kv_head, D], in the layout of the products."""
    start = 0
    for block, _ in blocks:
        rows, length, _ = block.shape
        part = by_slot[start : start + rows * length].unflatten(0, (rows, length))
        yield part.permute(2, 0, 3, 1, 4)  # [kv_heads, R, heads per kv_head, T, D]
        start += rows * length


def _add_keys(block: Block, grad: Tensor, own: Tensor, of_prompts: Tensor) -> None:
    """Distribute the gradient of a block's keys or values [kv_heads * R, S, D].

    Args:
        own: receives the gradient of the rows' own tokens, [kv_heads, R, 1, T, D].
        of_prompts: the gradient of prompt tokens is added to it, [N, kv_heads, D].
    """
    rows, length, key_length = block.shape
    prompt, grad_own = grad.view(-1, rows, key_length, grad.shape[-1]).split([key_length - length, length], dim=2)
    own.copy_(grad_own.unsqueeze(2))
    prompt_tokens = block.keys.view(rows, key_length)[:, : key_length - length].flatten()
    of_prompts.index_add_(0, prompt_tokens, prompt.permute(1, 2, 0, 3).flatten(0, 1))
