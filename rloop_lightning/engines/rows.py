"""Rows of tokens that a model extends; `TorchEngine` decodes with them.

    rows = Rows(policy, prompts, max_new_tokens, dtype)
    rows.logits                             # [R, V], for the next token of each row
    rows.select(prompt_of_row)              # continue with these rows, which may repeat
    rows.append(tokens)                     # append one token to each row
    rows.replace(some, prompts, prompt_of)  # begin these prompts in the place of some rows

All rows end in the same column: shorter ones begin further to the right, and what is on their left is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rloop_lightning.engines.columns import Columns, PaddedPrompts
from rloop_lightning.engines.decode_graph import DecodeGraph, can_record, warn_not_recorded
from rloop_lightning.engines.row_cache import joined, joins, replace, row_cache, shift
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.shapes import rounded_up

# Padded prompt tokens per forward pass; bounds the memory of the prefill.
_PREFILL_TOKENS = 16384

# Columns that no row needs are dropped once they are so large a part of all. Dropping copies the others.
_DROPPED_PART = 1 / 8


def can_replace(policy: Policy) -> bool:
    """Whether rows of this policy can be replaced, and its prompts computed in pieces."""
    return joins(row_cache(policy.model.config, policy.model.dtype))


def most_columns(tokens: int) -> int:
    """The columns of a batch in which rows of up to so many tokens begin and end at any time."""
    return tokens + -(-tokens // round(1 / _DROPPED_PART - 1))  # of which the part that is dropped is seen by no row


def most_prompts(prompts: list[list[int]]) -> int:
    """How many prompts may be computed at once where they can't be computed in pieces."""
    return max(1, _PREFILL_TOKENS // max(map(len, prompts), default=1))


class Rows:
    """One row per prompt, extended by the policy's own model with a preallocated KV cache.

    Args:
        prompts: P token lists.
        max_new_tokens: upper bound of the tokens that a row appends before it is dropped or replaced.
        later: the prompts that may replace them.
        dtype: dtype of the cache and of the products; the caller sets the model's products to it.
        report_routed_experts: whether to record the experts of each forward pass.
        fixed_shapes: decode with tensors of fixed shapes, as a CUDA graph needs them (decode_graph.py); None does so
            where a graph can be recorded.

    Raises:
        TypeError: the model has no KV cache.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: list[list[int]],
        max_new_tokens: int,
        dtype: torch.dtype,
        *,
        later: Sequence[list[int]] = (),
        report_routed_experts: bool = False,
        fixed_shapes: bool | None = None,
    ) -> None:
        self._model = policy.model
        self._decoder = policy.model.get_decoder()
        self._logits_of = policy.head.open(policy.model, dtype)
        self._routing = policy.routing if report_routed_experts else None
        self._dtype = dtype
        padded = PaddedPrompts(prompts, policy.device)
        # Rows that end in the same column have no more columns than the longest; others begin and end at any time.
        self._longest = max(map(len, (*prompts, *later))) + max_new_tokens  # tokens
        self._most = most_columns(self._longest) if later else self._longest
        self._columns = Columns(padded.lengths)
        self._cache, self.logits, self.routed_experts = self._prefill(padded)
        can = self._routing is None and can_record(policy, self._cache)
        self._fixed_shapes = can if fixed_shapes is None else fixed_shapes
        self._graph: DecodeGraph | None = None

    logits: Tensor  # [R, V]
    routed_experts: Tensor | None  # [R, columns of the last forward pass, layers, top_k], if reported

    def select(self, rows: Tensor) -> None:
        """Continue with these rows, which may repeat."""
        self._columns.select(rows)
        self._drop_columns()
        self._cache.reorder_cache(rows)
        self.logits = self.logits[rows]
        self._graph = None

    def replace(self, rows: Tensor, prompts: list[list[int]], prompt_of_row: Tensor) -> None:
        """Begin new rows in the place of old ones; `can_replace` says whether the model's cache can.

        Args:
            rows: [K] int64, the rows to replace.
            prompts: P token lists, computed once each.
            prompt_of_row: [K] int64, the prompt that each of these rows continues.
        """
        spare = rounded_up(len(prompts), rows.device) - len(prompts)  # few distinct shapes
        padded = PaddedPrompts([*prompts, *[prompts[-1]] * spare], rows.device)
        cache, logits, self.routed_experts = self._prefill(padded)
        if (missing := padded.columns - self._columns.count) > 0:
            shift(self._cache, missing)
            self._columns.shift(missing)
            self._graph = None
        replace(self._cache, rows, cache, prompt_of_row)
        self.logits[rows] = logits[prompt_of_row]
        self._columns.replace(rows, padded.lengths[prompt_of_row])
        self._show_columns()
        self._drop_columns()

    def _drop_columns(self) -> None:
        """Drop the columns on the left that no row sees, once they are many."""
        columns = self._columns
        unseen = columns.count - min(columns.longest, self._longest)  # a row that has ended counts on
        if unseen >= _DROPPED_PART * columns.count and unseen and joins(self._cache):
            shift(self._cache, -unseen)
            columns.shift(-unseen)
            self._show_columns()

    def _show_columns(self) -> None:
        if self._graph is not None:
            self._graph.show(self._columns.all_seen)

    def append(self, tokens: Tensor) -> None:
        """Append one token to each row; tokens is [R]."""
        if self._columns.count == self._most:
            self._drop_columns()
        # A row that has ended, but is not dropped or replaced yet, must not pass the model's context.
        positions = self._columns.append().clamp_(max=self._longest - 1)
        if self._fixed_shapes:
            try:
                self.logits = self._open_graph().append(tokens, positions)
                return
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                warn_not_recorded(error)
                self._fixed_shapes, self._graph = False, None
        self.logits, self.routed_experts = self._forward(
            tokens[:, None], positions[:, None], self._columns.seen, self._cache
        )

    @property
    def is_recorded(self) -> bool:
        """Whether the last token was decoded by a CUDA graph."""
        return self._graph is not None and self._graph.is_recorded

    def _open_graph(self) -> DecodeGraph:
        """The recorded step, recorded anew if rows have changed or its buffers are full."""
        if self._graph is None or self._graph.is_full:
            self._graph = None  # frees its memory first
            self._graph = DecodeGraph(self._logits, self._cache, self._columns.all_seen)
        return self._graph

    def _prefill(self, prompts: PaddedPrompts) -> tuple[Any, Tensor, Tensor | None]:
        """A cache of the prompts, computed in pieces; the logits after them [P, V]; and the routers' choices."""
        can_join = joins(row_cache(self._model.config, self._dtype))
        size = max(1, _PREFILL_TOKENS // prompts.columns) if can_join else len(prompts.input_ids)
        caches, outputs = [], []
        for piece in prompts.pieces(size):
            caches.append(row_cache(self._model.config, self._dtype, self._most))
            outputs.append(self._forward(*piece, caches[-1]))
        logits, experts = zip(*outputs, strict=True)
        cache = joined(caches) if len(caches) > 1 else caches[0]
        return cache, torch.cat(logits), None if self._routing is None else torch.cat(experts)

    def _forward(
        self, input_ids: Tensor, positions: Tensor, seen: Tensor | None, cache: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The logits after the last column [R, V], and the routers' choices [R, columns, layers, top_k]."""
        if self._routing is None:
            return self._logits(input_ids, positions, seen, cache), None
        with self._routing.forward_pass(input_ids.numel()) as passed:
            logits = self._logits(input_ids, positions, seen, cache)
        return logits, passed.chosen.unflatten(0, input_ids.shape)

    def _logits(self, input_ids: Tensor, positions: Tensor, seen: Tensor | None, cache: Any) -> Tensor:
        output = self._decoder(
            input_ids=input_ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        )
        if getattr(output, "past_key_values", None) is not cache:
            raise TypeError(f"TorchEngine needs a model with a KV cache; {type(self._model).__name__} ignores it")
        return self._logits_of(output.last_hidden_state[:, -1])
