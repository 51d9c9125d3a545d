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

from rloop_lightning.model.shapes import rounded_up
from rloop_lightning.types import RolloutBatch

# Blocks of rollouts: each computes attention as wide as its longest, and costs a few operations more.
_BLOCKS = 4
# Numbers of tokens are rounded to multiples of this, which vector units and kernels like.
_TOKENS = 16
# On a CPU, two batched products beat the fused kernel, backward above all, while scores fit its caches; their number of
# rows is rounded, too.
_LONGEST_FOR_PRODUCTS = 512
_ROWS = 8


@dataclass(frozen=True)
class Block:
    """Sequences whose attention is computed together; some repeat the first, so that R is rounded."""

    queries: Tensor  # [R * T] int64, tokens of the packed row; behind a sequence's end its first token again
    keys: Tensor  # [R * S] int64
    sees: Tensor  # [R, T, S] bool, whether a query sees a key

    @property
    def shape(self) -> tuple[int, int, int]:
        """R, T and S."""
        return self.sees.shape[0], self.sees.shape[1], self.sees.shape[2]

    def bias(self, dtype: torch.dtype) -> Tensor:
        """What attention adds to the scores [R, T, S]: 0 where a query sees a key, else a very negative number."""
        return torch.zeros(self.sees.shape, dtype=dtype, device=self.sees.device).masked_fill_(~self.sees, -1e9)


@dataclass(frozen=True)
class PackedBatch:
    """N tokens of a batch: its distinct prompts, then its completions in the order of its rows."""

    input_ids: Tensor  # [N] int64
    positions: Tensor  # [N] int64, places in their sequences
    predicting: Tensor  # [M] int64, for each completion token the token before it
    targets: Tensor  # [M] int64, the completion tokens
    blocks: tuple[Block, ...]
    places: Tensor  # [N] int64, where a token stands among the queries of all blocks, and of what is behind them
    slots: int  # how many places there are
    uses_products: bool  # whether attention is two batched products, not PyTorch's fused kernel

    def padded(self) -> PackedBatch:
        """With a rounded number of tokens; those behind attend to nothing, and predict nothing."""
        count = rounded_up(len(self.input_ids), self.input_ids.device, _TOKENS) - len(self.input_ids)
        return replace(
            self,
            input_ids=pad(self.input_ids, (0, count)),
            positions=pad(self.positions, (0, count)),
            places=torch.cat([self.places, self.slots + torch.arange(count, device=self.places.device)]),
            slots=self.slots + count,
        )


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

    longest = int(prompt_lengths.max()) + int(completion_lengths.max())
    uses_products = device.type == "cpu" and longest <= _LONGEST_FOR_PRODUCTS
    multiple = _ROWS if uses_products else 1
    blocks = [_block(prompt_starts, prompt_lengths, prompt_starts, torch.zeros_like(prompt_lengths), multiple)]
    members = [torch.arange(len(prompt_lengths), device=device)]
    by_length = completion_lengths.argsort(stable=True)
    for chosen in by_length.split(rounded_up(-(-len(batch) // _BLOCKS), device, multiple)):
        owner = prompt_of_row[chosen]
        own = completion_starts[chosen], completion_lengths[chosen]
        blocks.append(_block(*own, prompt_starts[owner], prompt_lengths[owner], multiple))
        members.append(len(prompt_lengths) + chosen)
    return PackedBatch(
        input_ids=input_ids,
        positions=positions,
        predicting=predicting,
        targets=input_ids[first:],
        blocks=tuple(blocks),
        places=_places(blocks, members, sequences, offsets),
        slots=sum(len(block.queries) for block in blocks),
        uses_products=uses_products,
    )


class PackedAttention:
    """How the tokens of a packed batch attend to each other: causally inside their own prompt and completion.

    Args:
        heads, kv_heads: attention heads, and those that keys and values have.
        scale: of the products of queries and keys.
        dtype: of queries, keys and values.
    """

    def __init__(self, packed: PackedBatch, heads: int, kv_heads: int, scale: float, dtype: torch.dtype) -> None:
        self._places, self._slots = packed.places, packed.slots
        self._sharing = heads // kv_heads
        self._scale = scale
        self._uses_products = packed.uses_products
        self._blocks = [(block, self._bias(block, kv_heads, dtype)) for block in packed.blocks]  # for every layer

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries [N, heads, D], keys and values [N, kv_heads, D] to [N, heads * D]."""
        if self._uses_products:
            return _ProductAttention.apply(queries, keys, values, self._blocks, self._places, self._slots, self._scale)
        found = torch.cat([self._fused(block, bias, queries, keys, values) for block, bias in self._blocks])
        return pad(found, (0, 0, 0, self._slots - len(found))).index_select(0, self._places)

    def _bias(self, block: Block, kv_heads: int, dtype: torch.dtype) -> Tensor:
        """As the products add it, [kv_heads * R, heads that share one * T, S], or as the kernel does, [R, 1, T, S]."""
        bias = block.bias(dtype)
        return bias.repeat(kv_heads, self._sharing, 1) if self._uses_products else bias[:, None]

    def _fused(self, block: Block, bias: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What a block's queries gather, [R * T, heads * D], by PyTorch's kernel, which never holds all scores."""
        rows, length, key_length = block.shape
        query = queries.index_select(0, block.queries).unflatten(0, (rows, length)).transpose(1, 2)  # [R, heads, T, D]
        key, value = (part.index_select(0, block.keys).unflatten(0, (rows, key_length)) for part in (keys, values))
        key, value = (part.transpose(1, 2).repeat_interleave(self._sharing, dim=1) for part in (key, value))
        found = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self._scale)
        return found.transpose(1, 2).reshape(rows * length, -1)


class _ProductAttention(torch.autograd.Function):
    """Batched products and a softmax for each block, one after the other.

    Backward, a token's gradients lie in its slot, and in those of the rollouts that have it in their prompt.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, blocks: Any, places: Tensor, slots: int, scale: float
    ) -> Tensor:
        _, heads, width = queries.shape
        shape = keys.shape[1], heads // keys.shape[1], width
        queries, keys, values = (part.transpose(0, 1).contiguous() for part in (queries, keys, values))
        found, kept = queries.new_zeros(slots, *shape), []
        for (block, bias), part in zip(blocks, _parts(blocks, found), strict=True):
            query, key, value = _gathered(block, queries.view(*shape[:2], -1, width), keys, values)
            weights = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale).softmax(-1)
            part.copy_(torch.bmm(weights, value).view(part.shape))
            kept += [query, key, value, weights]
        ctx.save_for_backward(places, *kept)
        ctx.blocks, ctx.shape, ctx.slots, ctx.scale = blocks, shape, slots, scale
        return found.flatten(1).index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        places, *kept = ctx.saved_tensors
        kv_heads, _, width = ctx.shape
        found, queries = (grad.new_zeros(ctx.slots, *ctx.shape) for _ in range(2))
        keys, values = (grad.new_zeros(ctx.slots, kv_heads, 1, width) for _ in range(2))
        prompt_keys, prompt_values = (grad.new_zeros(len(places), kv_heads, width) for _ in range(2))
        found.flatten(1).index_copy_(0, places, grad)
        parts = zip(*(_parts(ctx.blocks, by_slot) for by_slot in (found, queries, keys, values)), strict=True)
        for (block, _), (found_part, query_part, key_part, value_part) in zip(ctx.blocks, parts, strict=True):
            query, key, value, weights = kept[:4]
            del kept[:4]
            grad_found = found_part.reshape(query.shape)
            grad_weights = torch.bmm(grad_found, value.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(ctx.scale)
            query_part.copy_(torch.bmm(grad_scores, key).view(query_part.shape))
            _add_keys(block, torch.bmm(grad_scores.transpose(1, 2), query), key_part, prompt_keys)
            _add_keys(block, torch.bmm(weights.transpose(1, 2), grad_found), value_part, prompt_values)
        queries, keys, values = (by_slot.flatten(1, 2).index_select(0, places) for by_slot in (queries, keys, values))
        return queries, keys.add_(prompt_keys), values.add_(prompt_values), None, None, None, None


def _gathered(block: Block, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A block's queries [kv_heads * R, heads that share one * T, D], keys and values [kv_heads * R, S, D].

    Args: queries [kv_heads, heads that share one, N, D]; keys, values [kv_heads, N, D].
    """
    rows, length, key_length = block.shape
    heads, sharing, _, width = queries.shape
    query = queries.index_select(2, block.queries).view(heads, sharing, rows, length, width).transpose(1, 2)
    key, value = (part.index_select(1, block.keys).view(-1, key_length, width) for part in (keys, values))
    return query.reshape(heads * rows, sharing * length, width), key, value


def _parts(blocks: Any, by_slot: Tensor) -> Iterator[Tensor]:
    """Each block's part of what all slots hold [slots, kv_heads, heads that share one, D], as its products have it."""
    start = 0
    for block, _ in blocks:
        rows, length, _ = block.shape
        part = by_slot[start : start + rows * length].unflatten(0, (rows, length))
        yield part.permute(2, 0, 3, 1, 4)  # [kv_heads, R, heads that share one, T, D]
        start += rows * length


def _add_keys(block: Block, grad: Tensor, own: Tensor, of_prompts: Tensor) -> None:
    """Put the gradient of a block's keys or values [kv_heads * R, S, D] where it belongs.

    Args:
        own: takes that of the rows' own, [kv_heads, R, 1, T, D].
        of_prompts: that of their prompts is added to it, [N, kv_heads, D].
    """
    rows, length, key_length = block.shape
    prompt, grad_own = grad.view(-1, rows, key_length, grad.shape[-1]).split([key_length - length, length], dim=2)
    own.copy_(grad_own.unsqueeze(2))
    prompt_tokens = block.keys.view(rows, key_length)[:, : key_length - length].flatten()
    of_prompts.index_add_(0, prompt_tokens, prompt.permute(1, 2, 0, 3).flatten(0, 1))


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


def _block(starts: Tensor, lengths: Tensor, prompt_starts: Tensor, prompt_lengths: Tensor, multiple: int) -> Block:
    """R sequences, by where they and the prompts before them start in the packed row; all prompts end in one column.

    Args:
        starts, lengths, prompt_starts, prompt_lengths: [R], tokens.
        multiple: what R is rounded to.
    """
    device = lengths.device
    repeats = rounded_up(len(lengths), device, multiple) - len(lengths)
    starts, lengths, prompt_starts, prompt_lengths = (
        torch.cat([part, part[:1].expand(repeats)]) for part in (starts, lengths, prompt_starts, prompt_lengths)
    )
    length = rounded_up(int(lengths.max()), device, _TOKENS)
    width = rounded_up(int(prompt_lengths.max()) + length, device, _TOKENS) - length  # columns of the prompts
    places = torch.arange(length, device=device)
    own = starts[:, None] + places * (places < lengths[:, None])  # [R, T]
    prompt_places = torch.arange(width, device=device) - (width - prompt_lengths[:, None])  # [R, S - T]
    of_prompt = (prompt_places >= 0)[:, None].expand(-1, length, -1)
    of_own = (places[:, None] >= places).expand(len(lengths), -1, -1)
    keys = torch.cat([prompt_starts[:, None] + prompt_places.clamp(min=0), own], dim=1)
    return Block(own.flatten(), keys.flatten(), torch.cat([of_prompt, of_own], dim=2))


def _places(blocks: list[Block], members: list[Tensor], sequences: Tensor, offsets: Tensor) -> Tensor:
    """Where each token stands among the queries of all blocks; `members` are the sequences of each block."""
    bases = torch.zeros(int(sequences[-1]) + 1, dtype=torch.int64, device=sequences.device)
    start = 0
    for block, chosen in zip(blocks, members, strict=True):
        rows, length, _ = block.shape
        bases[chosen] = start + torch.arange(len(chosen), device=sequences.device) * length
        start += rows * length
    return bases[sequences] + offsets
