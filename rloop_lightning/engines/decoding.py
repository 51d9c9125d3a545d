"""Completions of many rows, of which a batch is decoded at once: as rows end, others enter in their place.

    decoding = Decoding(policy, prompts, prompt_of_row, uniforms, sampling, stops, dtype=dtype, batch_rows=512)
    completions = decoding.run(report)

A row that waits for the longest one of its batch costs a GPU as much as a row that is decoded. So the batch stays full
until no row is left to enter; then ended rows are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rloop_lightning.engines.kept_tokens import KeptTokensRecord
from rloop_lightning.engines.routed_experts import RoutedExpertsRecord
from rloop_lightning.engines.rows import Rows
from rloop_lightning.engines.sampling import sample_tokens
from rloop_lightning.engines.stops import Stops
from rloop_lightning.errors import NonFiniteError
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.shapes import rounded_up
from rloop_lightning.types import SamplingParams

# Rows enter once so large a part of the batch has ended. Each time costs a forward pass over their prompts.
_ENTER_AT = 1 / 8

# Ended rows are dropped once a quarter of the batch has ended. A compaction copies the live rows' cache, about as much
# as one decode step reads. At this threshold, all compactions together copy three times the first cache in total.
_COMPACT_BELOW = 0.75


class Completions(NamedTuple):
    """What is sampled. Values after a row's first end are meaningless."""

    tokens: Tensor  # [R, T] int64
    logprobs: Tensor  # [R, T] float32
    ends: Tensor  # [R, T] bool, whether a token ends its row
    routed_experts: RoutedExpertsRecord | None  # of all tokens, under R3
    kept_tokens: KeptTokensRecord | None  # those that top-k or top-p kept, if they truncate


class Decoding:
    """A batch of slots, each of which decodes a row. Rows enter the batch in their order.

    Args:
        prompts: P token lists.
        prompt_of_row: [R] int64 on the CPU, ascending: the prompt each row continues.
        uniforms: [R, T] in [0, 1), one number per token.
        dtype: of the products and the KV cache.
        batch_rows: rows to decode at once; all R if the policy's cache can't replace rows.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: list[list[int]],
        prompt_of_row: Tensor,
        uniforms: Tensor,
        sampling: SamplingParams,
        stops: Stops,
        *,
        dtype: torch.dtype,
        batch_rows: int,
    ) -> None:
        self._prompts, self._prompt_of_row = prompts, prompt_of_row
        self._sampling, self._stops = sampling, stops
        self._rows, self._limit = uniforms.shape
        # Slots whose row has ended use a spare row, the last one.
        self._uniforms = pad(uniforms, (0, 0, 0, 1))
        self._tokens = torch.zeros_like(self._uniforms, dtype=torch.int64)
        self._logprobs = torch.zeros_like(self._uniforms)
        self._ends = torch.zeros_like(self._uniforms, dtype=torch.bool)

        self._entered = self._live_count = min(batch_rows, self._rows)
        self._row = torch.arange(self._entered, device=uniforms.device)  # [B], the row of each slot ...
        self._step = torch.zeros_like(self._row)  # [B], ... how many tokens it has ...
        self._live = torch.ones_like(self._row, dtype=torch.bool)  # [B], ... and whether it is unfinished
        self._token = self._row  # [B], the tokens that were sampled last

        entering, prompt_of_slot = self._prompts_of(0, self._entered)
        reports_experts = sampling.report_routed_experts and policy.wants_routed_experts
        later = prompts[int(prompt_of_row[self._entered]) :] if self._waiting else ()
        self._batch = Rows(policy, entering, self._limit, dtype, later=later, report_routed_experts=reports_experts)
        self._experts = RoutedExpertsRecord() if reports_experts else None
        self._kept = KeptTokensRecord() if sampling.truncates and sampling.report_kept_tokens else None
        self._record_prompts(entering, prompt_of_slot)
        self._batch.select(prompt_of_slot)

    def run(self, report: Callable[[int, int], None]) -> Completions:
        """Sample a completion for every row.

        Args:
            report: called after each token with the numbers of tokens and of complete rows since the last call.

        Raises:
            NonFiniteError: the first logits are NaN or infinite.
        """
        report(*self._sample())
        check_finite(self._logprobs[self._row, self._step])
        while self._live_count or self._waiting:
            self._extend()
            report(*self._sample())
        tokens, logprobs, ends = (values[: self._rows] for values in (self._tokens, self._logprobs, self._ends))
        return Completions(tokens, logprobs, ends, self._experts, self._kept)

    def _sample(self) -> tuple[int, int]:
        """Sample a token for each slot. Returns the numbers of tokens and of rows that it completed."""
        row, step = self._row, self._step
        token, logprob, kept = sample_tokens(self._batch.logits, self._uniforms[row, step], self._sampling)  # [B], [B]
        self._token, self._tokens[row, step], self._logprobs[row, step] = token, token, logprob
        self._ends[row, step] = ended = self._stops.ended(self._tokens, row, step, self._live)
        if self._kept is not None and kept is not None:
            self._kept.add(row, kept)
        self._live = self._live & ~ended & (step + 1 < self._limit)
        before, self._live_count = self._live_count, int(self._live.sum())
        return before, before - self._live_count

    def _extend(self) -> None:
        """Append the sampled tokens, and begin rows that wait in the place of ended ones."""
        self._row = torch.where(self._live, self._row, self._rows)
        self._step = torch.where(self._live, self._step + 1, 0)
        if not self._waiting and self._live_count <= _COMPACT_BELOW * len(self._live):
            self._compact()
        if self._live_count:
            self._batch.append(self._token)
            if self._experts is not None and self._batch.routed_experts is not None:
                self._experts.add(self._row, self._batch.routed_experts)
        if self._waiting and len(self._live) - self._live_count >= _ENTER_AT * len(self._live):
            self._enter()

    @property
    def _waiting(self) -> int:
        """Rows that have not entered."""
        return self._rows - self._entered

    def _compact(self) -> None:
        """Drop ended rows; rounding keeps a few."""
        count = rounded_up(self._live_count, self._live.device)
        kept = self._live.sort(descending=True, stable=True).indices[:count]
        self._batch.select(kept)
        self._row, self._step, self._live, self._token = (
            of_slot[kept] for of_slot in (self._row, self._step, self._live, self._token)
        )

    def _enter(self) -> None:
        """Begin as many rows as have ended."""
        slots = (~self._live).nonzero()[: self._waiting, 0]
        first, last = self._entered, self._entered + len(slots)
        entering, prompt_of_slot = self._prompts_of(first, last)
        self._batch.replace(slots, entering, prompt_of_slot)
        self._record_prompts(entering, prompt_of_slot)
        # Not in place: the records hold the tensors that were.
        self._row = self._row.index_copy(0, slots, torch.arange(first, last, device=slots.device))
        self._live = self._live.index_fill(0, slots, True)
        self._entered, self._live_count = last, self._live_count + len(slots)

    def _prompts_of(self, first: int, last: int) -> tuple[list[list[int]], Tensor]:
        """The prompts of some rows, and the one that each continues [rows]."""
        of_row = self._prompt_of_row[first:last]
        start, end = int(of_row[0]), int(of_row[-1]) + 1
        return self._prompts[start:end], (of_row - start).to(self._live.device)

    def _record_prompts(self, prompts: list[list[int]], prompt_of_slot: Tensor) -> None:
        if self._experts is not None and self._batch.routed_experts is not None:
            lengths = [len(prompt) for prompt in prompts]
            self._experts.begin(lengths, prompt_of_slot.tolist(), self._batch.routed_experts)


def check_finite(logprobs: Tensor) -> None:
    """Raise NonFiniteError if a sampled token's logprob [R] is not finite, which only NaN or infinite logits cause."""
    if bad := int((~logprobs.isfinite()).sum()):
        raise NonFiniteError(f"the policy's logits are NaN or infinite, in {bad} of {len(logprobs)} rollouts")
