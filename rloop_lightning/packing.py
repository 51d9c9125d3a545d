"""Rollouts without padding: all tokens of a micro-batch in one row, each prompt once however many rollouts share it.

    packed = pack(batch)
    hidden = llama(weights, packed.input_ids, packed.positions, PackedAttention(packed, ...))
    hidden[packed.predicting]       # what predicts each completion token

Everything but attention looks at one token at a time. Attention goes block by block: the prompts, then the rollouts,
those of like length together, each with its prompt's keys before its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from rloop_lightning.shapes import rounded_up
from rloop_lightning.types import RolloutBatch

# Blocks of rollouts: each computes attention as wide as its longest, and costs a few operations more.
_BLOCKS = 4
# Numbers of tokens and rows are rounded to multiples of this, which vector units like, too.
_ALIGNMENT = 16
# On a CPU, two batched products beat the fused kernel, backward above all, while scores fit its caches.
_LONGEST_FOR_PRODUCTS = 512


@dataclass(frozen=True)
class Block:
    """Sequences whose attention is computed together; some repeat the first, so that R is rounded."""

    queries: Tensor  # [R * T] int64, tokens of the packed row; behind a sequence's end its first token again
    keys: Tensor  # [R * S] int64
    bias: Tensor  # [R, T, S] float32, 0 where a query sees a key, else a very negative number

    @property
    def shape(self) -> tuple[int, int, int]:
        """R, T and S."""
        return self.bias.shape[0], self.bias.shape[1], self.bias.shape[2]


@dataclass(frozen=True)
class PackedBatch:
    """N tokens of a batch: its distinct prompts, then its completions in the order of its rows."""

    input_ids: Tensor  # [N] int64
    positions: Tensor  # [N] int64, places in their sequences
    predicting: Tensor  # [M] int64, for each completion token the token before it
    targets: Tensor  # [M] int64, the completion tokens
    blocks: tuple[Block, ...]
    places: Tensor  # [N] int64, where a token stands among the queries of all blocks

    def padded(self) -> PackedBatch:
        """With a rounded number of tokens; those behind are copies of the first, and predict nothing."""
        count = len(self.input_ids)
        behind = (0, rounded_up(count, _ALIGNMENT) - count)
        input_ids = pad(self.input_ids, behind, value=int(self.input_ids[0]))
        return replace(self, input_ids=input_ids, positions=pad(self.positions, behind), places=pad(self.places, behind))


def packed_micro_batches(batch: RolloutBatch, max_tokens: int) -> Iterator[tuple[Tensor, RolloutBatch]]:
    """Row numbers and rows, in pieces of at most `max_tokens` packed tokens.

    Rows that share a prompt stand together. A row longer than `max_tokens` comes alone.
    """
    order = batch.prompts.argsort(stable=True)
    fields = (batch.prompts, batch.prompt_lengths, batch.completion_lengths)
    rows = zip(*(field[order].tolist() for field in fields), strict=True)
    start = tokens = 0
    last_prompt = -1
    for end, (prompt, prompt_length, completion_length) in enumerate(rows):
        tokens += completion_length + (prompt_length if prompt != last_prompt else 0)
        if tokens > max_tokens and end > start:
            yield order[start:end], batch.select(order[start:end])
            start, tokens = end, completion_length + prompt_length
        last_prompt = prompt
    yield order[start:], batch.select(order[start:])


def pack(batch: RolloutBatch) -> PackedBatch:
    """The batch without padding and without repeated prompts."""
    device = batch.input_ids.device
    prompt_of_row, row_of_prompt = _distinct(batch.prompts)
    prompt_lengths, completion_lengths = batch.prompt_lengths[row_of_prompt], batch.completion_lengths
    lengths = torch.cat([prompt_lengths, completion_lengths])  # of the sequences: prompts, then completions
    sequences, offsets = _ragged(lengths)
    starts = lengths.cumsum(0) - lengths
    prompt_starts, completion_starts = starts.tensor_split([len(prompt_lengths)])

    # Where a token stands in the batch: its row, and its place there.
    rows = torch.cat([row_of_prompt, torch.arange(len(batch), device=device)])[sequences]
    positions = torch.cat([torch.zeros_like(prompt_lengths), batch.prompt_lengths])[sequences] + offsets
    input_ids = batch.input_ids[rows, positions]

    # The first token of a completion is predicted by the last of its prompt, any other by the one before it.
    first = int(prompt_lengths.sum())
    last_of_prompt = (prompt_starts + prompt_lengths - 1)[prompt_of_row]  # [B]
    one_before = torch.arange(first, len(input_ids), device=device) - 1
    predicting = torch.where(offsets[first:] == 0, last_of_prompt[rows[first:]], one_before)

    blocks = [_block(prompt_starts, prompt_lengths, prompt_starts, torch.zeros_like(prompt_lengths))]
    members = [torch.arange(len(prompt_lengths), device=device)]
    by_length = completion_lengths.argsort(stable=True)
    for chosen in by_length.split(rounded_up(-(-len(batch) // _BLOCKS), _ALIGNMENT)):
        owner = prompt_of_row[chosen]
        own = completion_starts[chosen], completion_lengths[chosen]
        blocks.append(_block(*own, prompt_starts[owner], prompt_lengths[owner]))
        members.append(len(prompt_lengths) + chosen)
    return PackedBatch(
        input_ids=input_ids,
        positions=positions,
        predicting=predicting,
        targets=input_ids[first:],
        blocks=tuple(blocks),
        places=_places(blocks, members, sequences, offsets),
    )


class PackedAttention:
    """How the tokens of a packed batch attend to each other: causally inside their own prompt and completion.

    Args:
        heads, kv_heads: attention heads, and those that keys and values have.
        scale: of the products of queries and keys.
        dtype: of queries, keys and values.
    """

    def __init__(self, packed: PackedBatch, heads: int, kv_heads: int, scale: float, dtype: torch.dtype) -> None:
        self._places = packed.places
        self._shape = (kv_heads, heads // kv_heads)
        self._scale = scale
        longest = max(block.shape[2] for block in packed.blocks)
        self._uses_products = packed.input_ids.device.type == "cpu" and longest <= _LONGEST_FOR_PRODUCTS
        self._blocks = [(block, self._bias(block, dtype)) for block in packed.blocks]  # the same in every layer

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries [N, heads, D], keys and values [N, kv_heads, D] to [N, heads * D]."""
        # Contiguous, or each block's gathering would copy the whole first.
        queries, keys, values = (part.transpose(0, 1).contiguous() for part in (queries, keys, values))  # [.., N, D]
        queries = queries.unflatten(0, self._shape)  # [kv_heads, heads that share one, N, D]
        if self._uses_products:
            found = _ProductAttention.apply(queries, keys, values, self._blocks, self._scale)
        else:
            found = torch.cat([self._fused(block, bias, queries, keys, values) for block, bias in self._blocks])
        return found.index_select(0, self._places)

    def _bias(self, block: Block, dtype: torch.dtype) -> Tensor:
        """As the products add it, [kv_heads, R, heads that share one * T, S], or as the kernel does, [R, 1, T, S]."""
        bias = block.bias.to(dtype)
        kv_heads, sharing = self._shape
        return bias.repeat(1, sharing, 1).expand(kv_heads, -1, -1, -1) if self._uses_products else bias[:, None]

    def _fused(self, block: Block, bias: Tensor, *qkv: Tensor) -> Tensor:
        """What a block's queries gather, [R * T, heads * D], by PyTorch's kernel, which never holds all scores."""
        rows, length, _ = block.shape
        sharing = self._shape[1]
        query, key, value = (part.transpose(0, 1) for part in _gathered(block, *qkv))  # [R, kv_heads, ..., D]
        query = query.unflatten(2, (sharing, length)).flatten(1, 2)  # [R, heads, T, D]
        key, value = (part.repeat_interleave(sharing, dim=1) for part in (key, value))
        found = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self._scale)
        return found.transpose(1, 2).reshape(rows * length, -1)


class _ProductAttention(torch.autograd.Function):
    """Batched products and a softmax for each block, one after the other; [all queries of all blocks, heads * D].

    Keeps the attention weights, and gathers queries, keys and values anew in the backward pass. All blocks add to the
    same gradients there, where autograd would make and add up one for each.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, blocks: Any, scale: float) -> Tensor:
        found, kept = [], []
        for block, bias in blocks:
            query, key, value = (part.flatten(0, 1) for part in _gathered(block, queries, keys, values))
            weights = torch.baddbmm(bias.flatten(0, 1), query, key.transpose(1, 2), alpha=scale).softmax(-1)
            found.append(_by_token(block, torch.bmm(weights, value).unflatten(0, (len(keys), -1))))
            kept.append(weights)
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, keys, values, *kept = ctx.saved_tensors
        grads = [torch.zeros(part.shape, dtype=part.dtype, device=part.device) for part in (queries, keys, values)]
        start = 0
        for (block, _), weights in zip(ctx.blocks, kept, strict=True):
            rows, length, _ = block.shape
            query, key, value = (part.flatten(0, 1) for part in _gathered(block, queries, keys, values))
            end = start + rows * length
            grad_found = _by_row(block, grad[start:end], queries.shape[:2]).flatten(0, 1)
            start = end
            grad_weights = torch.bmm(grad_found, value.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(ctx.scale)
            _add_queries(block, grads[0], torch.bmm(grad_scores, key))
            _add_keys(block, grads[1], torch.bmm(grad_scores.transpose(1, 2), query))
            _add_keys(block, grads[2], torch.bmm(weights.transpose(1, 2), grad_found))
        return *grads, None, None  # type: ignore[return-value]  # a list of three


def _gathered(block: Block, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A block's queries [kv_heads, R, heads that share one * T, D], keys and values [kv_heads, R, S, D]."""
    rows, length, key_length = block.shape
    heads, sharing, _, width = queries.shape
    query = queries.index_select(2, block.queries).view(heads, sharing, rows, length, width)
    key, value = (part.index_select(1, block.keys).view(heads, rows, key_length, width) for part in (keys, values))
    return query.transpose(1, 2).reshape(heads, rows, sharing * length, width), key, value


def _by_token(block: Block, found: Tensor) -> Tensor:
    """[kv_heads, R, heads that share one * T, D] to [R * T, heads * D]."""
    rows, length, _ = block.shape
    found = found.unflatten(2, (-1, length))  # [kv_heads, R, sharing, T, D]
    return found.permute(1, 3, 0, 2, 4).reshape(rows * length, -1)


def _by_row(block: Block, found: Tensor, heads: tuple[int, int]) -> Tensor:
    """The reverse of `_by_token`."""
    rows, length, _ = block.shape
    return found.view(rows, length, *heads, -1).permute(2, 0, 3, 1, 4).flatten(2, 3)


def _add_queries(block: Block, total: Tensor, grad: Tensor) -> None:
    """Add the gradient of a block's queries [kv_heads * R, sharing * T, D] to that of all [kv_heads, sharing, N, D]."""
    rows, length, _ = block.shape
    heads, sharing, _, width = total.shape
    by_query = grad.view(heads, rows, sharing, length, width).transpose(1, 2).reshape(heads, sharing, -1, width)
    total.index_add_(2, block.queries, by_query)


def _add_keys(block: Block, total: Tensor, grad: Tensor) -> None:
    """Add the gradient of a block's keys or values [kv_heads * R, S, D] to that of all [kv_heads, N, D]."""
    total.index_add_(1, block.keys, grad.view(len(total), -1, total.shape[-1]))


def _distinct(prompts: Tensor) -> tuple[Tensor, Tensor]:
    """For each row which of the P distinct prompts it has [B], and for each prompt the first row that has it [P]."""
    distinct, prompt_of_row = prompts.unique(return_inverse=True)
    rows = torch.arange(len(prompts), device=prompts.device)
    return prompt_of_row, torch.zeros_like(distinct).scatter_reduce(0, prompt_of_row, rows, "amin", include_self=False)


def _ragged(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """For each token of sequences that stand one after the other: its sequence, and its place in that."""
    sequences = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    starts = lengths.cumsum(0) - lengths
    return sequences, torch.arange(len(sequences), device=lengths.device) - starts[sequences]


def _block(starts: Tensor, lengths: Tensor, prompt_starts: Tensor, prompt_lengths: Tensor) -> Block:
    """R sequences, by where they and the prompts before them start in the packed row; all prompts end in one column.

    Args: all [R], tokens.
    """
    device = lengths.device
    repeats = rounded_up(len(lengths), _ALIGNMENT) - len(lengths)
    starts, lengths, prompt_starts, prompt_lengths = (
        torch.cat([part, part[:1].expand(repeats)]) for part in (starts, lengths, prompt_starts, prompt_lengths)
    )
    length = rounded_up(int(lengths.max()), _ALIGNMENT)
    width = rounded_up(int(prompt_lengths.max()) + length, _ALIGNMENT) - length  # columns of the prompts
    places = torch.arange(length, device=device)
    own = starts[:, None] + places * (places < lengths[:, None])  # [R, T]
    prompt_places = torch.arange(width, device=device) - (width - prompt_lengths[:, None])  # [R, S - T]
    of_prompt = (prompt_places >= 0)[:, None].expand(-1, length, -1)
    of_own = (places[:, None] >= places).expand(len(lengths), -1, -1)
    bias = torch.zeros(len(lengths), length, width + length, device=device)
    bias.masked_fill_(~torch.cat([of_prompt, of_own], dim=2), -1e9)
    keys = torch.cat([prompt_starts[:, None] + prompt_places.clamp(min=0), own], dim=1)
    return Block(own.flatten(), keys.flatten(), bias)


def _places(blocks: list[Block], members: list[Tensor], sequences: Tensor, offsets: Tensor) -> Tensor:
    """Where each token stands among the queries of all blocks; `members` are the sequences of each block."""
    bases = torch.zeros(int(sequences[-1]) + 1, dtype=torch.int64, device=sequences.device)
    start = 0
    for block, chosen in zip(blocks, members, strict=True):
        rows, length, _ = block.shape
        bases[chosen] = start + torch.arange(len(chosen), device=sequences.device) * length
        start += rows * length
    return bases[sequences] + offsets
