"""The memory of attention over packed rollouts, by arithmetic.

    rows = PackedRows(prompts=2, prompt=100, rollouts=16, completion=900)
    attention_memory(shape, rows, device="cpu", dtype=torch.float32).stored         # bytes, of one layer

On a GPU in half precision, kernels store no scores (row_attention.py). On a CPU, sequences are padded to blocks, and
short ones have their scores stored (block_attention.py). Float32 on a GPU is counted as by a kernel without scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch

from rloop_lightning.model.block_attention import LONGEST_FOR_PRODUCTS
from rloop_lightning.model.model_shape import ModelShape
from rloop_lightning.model.packing import TOKENS
from rloop_lightning.model.shapes import rounded_up

_BLOCKS, _ROWS = 4, 8  # of block_attention.py
_WASTE = 1.5  # of row_attention.py
_FULL = 4  # bytes of a number in float32
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PackedRows:
    """The rollouts of a micro-batch, of equal lengths.

    Args:
        prompts: distinct prompts.
        prompt: tokens of each prompt.
        rollouts: rollouts of all prompts.
        completion: tokens of each completion.
    """

    prompts: int
    prompt: int
    rollouts: int
    completion: int

    @classmethod
    def within(cls, tokens: int, *, prompt: int, completion: int, per_prompt: int, most: int) -> Self:
        """As many rollouts as fit into a token budget, at least one.

        Args:
            tokens: packed tokens of the micro-batch.
            per_prompt: rollouts that share a prompt.
            most: rollouts of the mini-batch.
        """
        groups, rest = divmod(tokens, prompt + per_prompt * completion)
        rollouts = groups * per_prompt + min(per_prompt, max(0, rest - prompt) // completion)
        rollouts = max(1, min(rollouts, most))
        return cls(math.ceil(rollouts / per_prompt), prompt, rollouts, completion)

    @property
    def predicting(self) -> int:
        """Completion tokens."""
        return self.rollouts * self.completion

    @property
    def tokens(self) -> int:
        """Packed tokens: each prompt once."""
        return self.prompts * self.prompt + self.predicting


@dataclass(frozen=True)
class AttentionMemory:
    """Bytes of one layer's attention.

    Args:
        stored: from the forward pass to the backward pass.
        kept: of `stored`, what gradient checkpointing does not compute again.
        passing: temporary tensors of the backward pass.
        shared: masks, which all layers share.
    """

    stored: float
    kept: float = 0
    passing: float = 0
    shared: float = 0


def attention_memory(shape: ModelShape, rows: PackedRows, *, device: str, dtype: torch.dtype) -> AttentionMemory:
    """The memory of attention over a micro-batch.

    Args:
        device: `cuda` or `cpu`.
        dtype: of queries, keys and values.
    """
    if device == "cpu":
        return _in_blocks(shape, rows, dtype.itemsize)
    slots = _slots(rows)
    output = slots * (shape.queries * dtype.itemsize + shape.heads * _FULL)  # with the log-sum-exp of each head
    inputs = slots * (shape.queries + 2 * shape.keys) * dtype.itemsize
    return AttentionMemory(stored=inputs + output, kept=output)


def _slots(rows: PackedRows) -> int:
    """Tokens of attention: a prompt is copied for each rollout where that costs little arithmetic."""
    length = rows.prompt + rows.completion
    computed = rows.rollouts * length**2
    needed = rows.prompts * rows.prompt**2 + rows.rollouts * rows.completion * (rows.completion + 2 * rows.prompt)
    return rows.rollouts * length if computed < _WASTE * needed else rows.tokens


def _in_blocks(shape: ModelShape, rows: PackedRows, itemsize: int) -> AttentionMemory:
    """Attention in blocks of padded sequences, by products whose scores are stored, or by PyTorch's kernel."""
    by_products = rows.prompt + rows.completion <= LONGEST_FOR_PRODUCTS
    blocks = list(_blocks(rows, _ROWS if by_products else 1))
    queries = sum(count * length for count, length, _ in blocks)
    keys = sum(count * seen for count, _, seen in blocks)
    pairs = sum(count * length * seen for count, length, seen in blocks)
    if by_products:
        largest = max(count * length * seen for count, length, seen in blocks)
        stored = queries * shape.queries + 2 * keys * shape.keys + shape.heads * pairs
        gradients = 2 * queries * shape.queries + 2 * queries * shape.keys + 2 * rows.tokens * shape.keys
        passing = gradients + 2 * shape.heads * largest
        masks = shape.heads * pairs
    else:
        stored = (2 * queries + 2 * keys) * shape.queries  # keys and values are repeated for all heads
        passing = (2 * queries + 2 * keys) * shape.queries
        masks = pairs
    lengths = 0 if by_products else queries * shape.heads * _FULL
    return AttentionMemory(stored * itemsize + lengths, passing=passing * itemsize, shared=masks * itemsize)


def _blocks(rows: PackedRows, rounding: int) -> Iterator[tuple[int, int, int]]:
    """Sequences, queries and keys of each block: of the prompts, then of the completions."""
    prompt = rounded_up(rows.prompt, _CPU, TOKENS)
    yield rounded_up(rows.prompts, _CPU, rounding), prompt, prompt
    size = rounded_up(-(-rows.rollouts // _BLOCKS), _CPU, rounding)
    completion = rounded_up(rows.completion, _CPU, TOKENS)
    seen = rounded_up(rows.prompt + completion, _CPU, TOKENS)
    for start in range(0, rows.rollouts, size):
        yield rounded_up(min(size, rows.rollouts - start), _CPU, rounding), completion, seen
