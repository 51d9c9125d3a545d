"""Attention over packed rollouts on a CPU, in blocks of sequences with similar lengths.

    attention = BlockAttention(packed, sees)
    attention(queries, keys, values, scaling)       # [N, heads, D] to [N, heads, Dv]

The first block contains the prompts. The others contain completions, each with its prompt's keys before its own. Within
a block, sequences are padded to the longest.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from rloop_lightning.model.attend import attend
from rloop_lightning.model.packing import TOKENS, PackedBatch
from rloop_lightning.model.product_attention import Block, Sees, product_attention
from rloop_lightning.model.shapes import rounded_up

# Number of completion blocks. More blocks waste less padding, but each costs a few more operations.
_BLOCKS = 4
# On a CPU, two batched products beat the fused kernel, above all in the backward pass, as long as the scores fit the
# caches. Their number of rows is rounded to a multiple of `_ROWS`.
LONGEST_FOR_PRODUCTS = 512
_ROWS = 8


class BlockAttention:
    """Attention over a packed batch in blocks. All layers with the same mask share one instance."""

    def __init__(self, packed: PackedBatch, sees: Sees) -> None:
        self._packed = packed
        self._sees = sees
        self._biases: dict[tuple[int, int, torch.dtype], list[Tensor]] = {}
        longest = int(packed.positions.max()) + 1
        self._uses_products = packed.input_ids.device.type == "cpu" and longest <= LONGEST_FOR_PRODUCTS

    def __call__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """The attention output, [N, heads, Dv].

        Args:
            queries: [N, heads, D].
            keys: [N, kv_heads, D].
            values: [N, kv_heads, Dv].
            scaling: factor of the scores.
            softcap: c caps the scores by c tanh(score / c).
            sinks: [heads], an extra score per head in the softmax, without a value.
        """
        if self._uses_products and softcap is None and sinks is None:
            biases = self._repeated(keys.shape[1], queries.shape[1] // keys.shape[1], queries.dtype)
            blocks = list(zip(self._blocks, biases, strict=True))
            return product_attention(queries, keys, values, blocks, self._places, self._slots, scaling)
        found = [
            _gather_and_attend(block, bias, queries, keys, values, scaling, softcap, sinks)
            for block, bias in zip(self._blocks, self._repeated(1, 1, queries.dtype), strict=True)
        ]
        gathered = torch.cat(found)  # [slots - filling, heads, Dv]
        return pad(gathered, (0, 0, 0, 0, 0, self._slots - len(gathered))).index_select(0, self._places)

    @cached_property
    def _members(self) -> list[Tensor]:
        """The sequences of each block."""
        device = self._packed.lengths.device
        prompts, completions = self._packed.prompts, self._packed.lengths[self._packed.prompts :]
        size = rounded_up(-(-len(completions) // _BLOCKS), device, self._rounding)
        by_length = completions.argsort(stable=True).split(size)
        return [torch.arange(prompts, device=device), *(prompts + chosen for chosen in by_length)]

    @cached_property
    def _blocks(self) -> list[Block]:
        packed, starts = self._packed, self._packed.starts
        blocks = []
        for number, chosen in enumerate(self._members):
            if number == 0:  # nothing precedes a prompt
                before, prompt_lengths = starts[chosen], torch.zeros_like(chosen)
            else:
                owner = packed.prompt_of_row[chosen - packed.prompts]
                before, prompt_lengths = starts[owner], packed.lengths[owner]
            blocks.append(_block(starts[chosen], packed.lengths[chosen], before, prompt_lengths, self._rounding))
        return blocks

    @property
    def _rounding(self) -> int:
        return _ROWS if self._uses_products else 1

    @cached_property
    def _places(self) -> Tensor:
        """Index of each token in the concatenated, padded block queries; filling tokens come after them."""
        packed = self._packed
        bases = torch.zeros_like(packed.lengths)
        start = 0
        for block, chosen in zip(self._blocks, self._members, strict=True):
            rows, length, _ = block.shape
            bases[chosen] = start + torch.arange(len(chosen), device=bases.device) * length
            start += rows * length
        offsets = torch.arange(packed.tokens, device=bases.device) - packed.starts[packed.sequences]
        filling = start + torch.arange(packed.filling, device=bases.device)
        return torch.cat([bases[packed.sequences] + offsets, filling])

    @cached_property
    def _slots(self) -> int:
        """The number of queries of all blocks, plus the filling tokens."""
        return sum(len(block.queries) for block in self._blocks) + self._packed.filling

    def _repeated(self, kv_heads: int, sharing: int, dtype: torch.dtype) -> list[Tensor]:
        """Each block's bias [kv_heads * R, heads per kv_head * T, S], computed once for all layers."""
        key = kv_heads, sharing, dtype
        if key not in self._biases:
            self._biases[key] = [block.bias(self._sees, dtype).repeat(kv_heads, sharing, 1) for block in self._blocks]
        return self._biases[key]


def _block(starts: Tensor, lengths: Tensor, prompt_starts: Tensor, prompt_lengths: Tensor, rounding: int) -> Block:
    """A block of R sequences and the prompts before them. All prompts end in the same column.

    Args:
        starts, prompt_starts: [R], offsets in the packed row.
        lengths, prompt_lengths: [R], tokens.
        rounding: R is rounded up to a multiple of this.
    """
    device = lengths.device
    repeats = rounded_up(len(lengths), device, rounding) - len(lengths)
    starts, lengths, prompt_starts, prompt_lengths = (
        torch.cat([part, part[:1].expand(repeats)])[:, None]
        for part in (starts, lengths, prompt_starts, prompt_lengths)
    )
    length = rounded_up(int(lengths.max()), device, TOKENS)
    width = rounded_up(int(prompt_lengths.max()) + length, device, TOKENS) - length  # columns of the prompts
    places = torch.arange(length, device=device)
    own = starts + places * (places < lengths)  # [R, T]
    in_prompt = torch.arange(width, device=device) - (width - prompt_lengths)  # [R, S - T]
    positions = prompt_lengths + places
    return Block(
        queries=own.flatten(),
        keys=torch.cat([prompt_starts + in_prompt.clamp(min=0), own], dim=1).flatten(),
        query_positions=positions,
        key_positions=torch.cat([in_prompt, positions], dim=1),
    )


def _gather_and_attend(
    block: Block,
    bias: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The attention output of a block, [R * T, heads, Dv]; without softcap and sinks by PyTorch's fused kernel."""
    rows, length, key_length = block.shape
    query = queries.index_select(0, block.queries).unflatten(0, (rows, length)).transpose(1, 2)  # [R, heads, T, D]
    key, value = (part.index_select(0, block.keys).unflatten(0, (rows, key_length)) for part in (keys, values))
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    if softcap is None and sinks is None:
        sharing = queries.shape[1] // keys.shape[1]
        key, value = (part.repeat_interleave(sharing, dim=1) for part in (key, value))
        found = scaled_dot_product_attention(query, key, value, attn_mask=bias[:, None], scale=scaling)
    else:
        found = attend(query, key, value, bias[:, None] == 0, scaling, softcap, sinks)
    return found.transpose(1, 2).flatten(0, 1)
