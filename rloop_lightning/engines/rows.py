"""Rows of tokens that a model extends; `TorchEngine` decodes with them.

    rows = Rows(policy, prompts, max_new_tokens, dtype)
    rows.logits                     # [R, V], for the next token of each row
    rows.select(prompt_of_row)      # continue with these rows, which may repeat
    rows.append(tokens)             # append one token to each row

All rows end in the same column: shorter prompts are padded on the left, and the padding is masked.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from rloop_lightning.engines.decode_graph import DecodeGraph, can_record, warn_not_recorded
from rloop_lightning.engines.row_cache import joined, joins, row_cache
from rloop_lightning.model.policy import Policy

# Padded prompt tokens per forward pass; bounds the memory of the prefill.
_PREFILL_TOKENS = 16384


def rows_at_once(policy: Policy, prompts: list[list[int]], n: int, max_rows: int | Literal["auto"]) -> int:
    """How many rows, n per prompt, to decode at once: `max_rows`, or fewer if the prefill needs too much memory."""
    if max_rows == "auto":
        raise RuntimeError("TorchEngine: max_rows is auto, which a run replaces by a figure; give it a number")
    if joins(row_cache(policy.model.config, policy.model.dtype)):
        return max_rows  # the prefill is computed in pieces
    return min(max_rows, n * max(1, _PREFILL_TOKENS // max(map(len, prompts))))


class Rows:
    """One row per prompt, extended by the policy's own model with a preallocated KV cache.

    Args:
        prompts: P token lists.
        max_new_tokens: upper bound of the tokens to append.
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
        report_routed_experts: bool = False,
        fixed_shapes: bool | None = None,
    ) -> None:
        self._model = policy.model
        self._decoder = policy.model.get_decoder()
        self._logits_of = policy.head.open(policy.model, dtype)
        self._routing = policy.routing if report_routed_experts else None
        self._columns = _Columns(prompts, max_new_tokens, policy.device)
        self.logits, self.routed_experts = self._prefill(dtype)
        can = self._routing is None and can_record(policy, self._cache)
        self._fixed_shapes = can if fixed_shapes is None else fixed_shapes
        self._graph: DecodeGraph | None = None

    logits: Tensor  # [R, V]
    routed_experts: Tensor | None  # [R, columns of the last forward pass, layers, top_k], if reported

    def select(self, rows: Tensor) -> None:
        """Continue with these rows, which may repeat."""
        self._cache.reorder_cache(rows)  # type: ignore[arg-type]  # declared for LongTensor, which int64 tensors are
        self._columns.select(rows)
        self.logits = self.logits[rows]
        self._graph = None

    def append(self, tokens: Tensor) -> None:
        """Append one token to each row; tokens is [R]."""
        positions = self._columns.append()
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

    def _prefill(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Fill the cache with the prompts, in pieces."""
        columns = self._columns
        size = max(1, _PREFILL_TOKENS // columns.count)
        if not joins(row_cache(self._model.config, dtype)):
            size = len(columns.input_ids)
        caches, outputs = [], []
        for start in range(0, len(columns.input_ids), size):
            rows = slice(start, start + size)
            caches.append(row_cache(self._model.config, dtype))
            seen = None if columns.seen is None else columns.seen[rows]
            outputs.append(self._forward(columns.input_ids[rows], columns.positions[rows], seen, caches[-1]))
        self._cache = joined(caches) if len(caches) > 1 else caches[0]
        logits, experts = zip(*outputs, strict=True)
        return torch.cat(logits), None if self._routing is None else torch.cat(experts)

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


class _Columns:
    """Left-padded prompts, and the columns that each row sees."""

    def __init__(self, prompts: list[list[int]], max_new_tokens: int, device: torch.device) -> None:
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # [R], tokens
        self.count = max(map(len, prompts))
        padding = self.count - self.lengths[:, None]  # [R, 1]
        columns = torch.arange(self.count + max_new_tokens, device=device)
        self._seen = columns >= padding  # [R, columns at the end]
        # Without padding no mask is needed, and attention uses its fastest kernel.
        self._padded = min(map(len, prompts)) < self.count
        self.input_ids = torch.zeros(len(prompts), self.count, dtype=torch.int64, device=device)
        self.input_ids[self._seen[:, : self.count]] = torch.tensor(list(chain.from_iterable(prompts)), device=device)
        self.positions = (columns[: self.count] - padding).clamp(min=0)

    @property
    def seen(self) -> Tensor | None:
        """Whether a column contains a token of the row [R, columns]; None if all do."""
        return self._seen[:, : self.count] if self._padded else None

    @property
    def all_seen(self) -> Tensor:
        """`seen` of all columns, also of those that are not written yet [R, columns at the end]."""
        return self._seen

    def select(self, rows: Tensor) -> None:
        self.lengths, self._seen = self.lengths[rows], self._seen[rows]

    def append(self) -> Tensor:
        """Add a column. Returns the rows' positions in it [R]."""
        self.count += 1
        self.lengths = self.lengths + 1
        return self.lengths - 1
