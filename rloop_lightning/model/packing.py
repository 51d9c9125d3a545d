"""Rollouts without padding: all tokens of a micro-batch in one row, with each shared prompt only once.

    packed = pack(batch)
    packed.input_ids, packed.positions      # [N], the input of a model as one row
    hidden[packed.predicting]               # the hidden states [N, H] that predict a completion token

Everything in a decoder but attention works on one token at a time. packed_attention.py computes attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from rloop_lightning.model.shapes import rounded_up
from rloop_lightning.types import RolloutBatch

# Token counts are rounded up to a multiple of this, which suits vector units and kernels.
TOKENS = 16

MicroBatches = Iterator[tuple[Tensor, RolloutBatch]]
"""Parts of a batch, each with its row numbers."""


@dataclass(frozen=True)
class PackedBatch:
    """The P distinct prompts of a batch, then its B completions in row order: P + B sequences, N tokens.

    `filling` more tokens at the end round N up. They attend to no other token and predict nothing.
    """

    input_ids: Tensor  # [N + filling] int64
    positions: Tensor  # [N + filling] int64, position within the rollout
    sequences: Tensor  # [N] int64, the sequence of each token
    lengths: Tensor  # [P + B] int64, tokens per sequence
    prompt_of_row: Tensor  # [B] int64, the index of each row's prompt
    rows: Tensor  # [N] int64, the batch row that each token is read from
    predicting: Tensor  # [M] int64, for each completion token the token before it

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.sequences)

    @property
    def prompts(self) -> int:
        """P."""
        return len(self.lengths) - len(self.prompt_of_row)

    @property
    def filling(self) -> int:
        return len(self.input_ids) - self.tokens

    @property
    def starts(self) -> Tensor:
        """The index of each sequence's first token in the packed row, [P + B]."""
        return self.lengths.cumsum(0) - self.lengths

    def places(self, columns: int) -> Tensor:
        """The packed index of the token at each row and column of the batch, [B, columns].

        Columns past the end of a rollout map to its last token.
        """
        starts, column = self.starts, torch.arange(columns, device=self.lengths.device)
        prompt_lengths = self.lengths[self.prompt_of_row][:, None]
        in_prompt = starts[self.prompt_of_row][:, None] + column
        last = self.lengths[self.prompts :, None] - 1
        in_completion = starts[self.prompts :, None] + (column - prompt_lengths).minimum(last)
        return torch.where(column < prompt_lengths, in_prompt, in_completion)

    def gather(self, values: Tensor) -> Tensor:
        """Map values of the batch [B, L, ...] to packed tokens [N + filling, ...].

        A prompt gets the values of the first row that has it. Filling gets 0.
        """
        gathered = values[self.rows, self.positions[: self.tokens]]
        return torch.cat([gathered, gathered.new_zeros(self.filling, *gathered.shape[1:])])

    def scatter(self, values: Tensor, columns: int) -> Tensor:
        """Map values of packed tokens [N, ...] to the batch [B, columns, ...]."""
        return values[self.places(columns)]


def packed_micro_batches(batch: RolloutBatch, max_tokens: int) -> MicroBatches:
    """Micro-batches of at most `max_tokens` packed tokens, each with its row numbers.

    Rows that share a prompt are adjacent. A row longer than `max_tokens` is a micro-batch of its own.
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
    lengths = torch.cat([batch.prompt_lengths[row_of_prompt], batch.completion_lengths])
    sequences = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
    starts = lengths.cumsum(0) - lengths
    offsets = torch.arange(len(sequences), device=device) - starts[sequences]

    rows = torch.cat([row_of_prompt, torch.arange(len(batch), device=device)])[sequences]
    positions = torch.cat([torch.zeros_like(row_of_prompt), batch.prompt_lengths])[sequences] + offsets
    input_ids = batch.input_ids[rows, positions]

    # The last prompt token predicts the first completion token. Any other is predicted by the token before it.
    prompts = len(row_of_prompt)
    first = int(lengths[:prompts].sum())
    last_of_prompt = (starts + lengths - 1)[prompt_of_row]  # [B]
    one_before = torch.arange(first, len(input_ids), device=device) - 1
    predicting = torch.where(offsets[first:] == 0, last_of_prompt[rows[first:]], one_before)

    filling = rounded_up(len(input_ids), device, TOKENS) - len(input_ids)
    return PackedBatch(
        input_ids=pad(input_ids, (0, filling)),
        positions=pad(positions, (0, filling)),
        sequences=sequences,
        lengths=lengths,
        prompt_of_row=prompt_of_row,
        rows=rows,
        predicting=predicting,
    )


def _distinct(prompts: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each row's prompt among the P distinct ones [B], and the first row of each prompt [P]."""
    distinct, prompt_of_row = prompts.unique(return_inverse=True)
    rows = torch.arange(len(prompts), device=prompts.device)
    return prompt_of_row, torch.zeros_like(distinct).scatter_reduce(0, prompt_of_row, rows, "amin", include_self=False)
