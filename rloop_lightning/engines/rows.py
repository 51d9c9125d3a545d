"""Rows of tokens that a model continues: what `TorchEngine` decodes with.

    rows = open_rows(policy, prompts, max_new_tokens, dtype)
    rows.logits                     # [R, V], of what follows each row
    rows.select(prompt_of_row)      # go on with these rows, which may repeat
    rows.append(tokens)             # one token more in each row

`LlamaRows` computes Llama-like models by llama.py, `HuggingFaceRows` any other causal LM by its own forward. In both,
rows end in the same column: shorter prompts are padded on the left, and the padding is masked.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from rloop_lightning.engines.row_cache import row_cache
from rloop_lightning.model.llama import Llama
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.routing_replay import RoutingReplay

# Padded prompt tokens that go through the model at once; bounds the memory of the prefill.
_PREFILL_TOKENS = 16384


class Rows(Protocol):
    """Rows that grow by one token at a time."""

    logits: Tensor  # [R, V]
    routed_experts: Tensor | None  # [R, columns of the last forward pass, layers, top_k], where they are reported

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, which may repeat."""

    def append(self, tokens: Tensor) -> None:
        """Add one token [R] to the rows."""


def open_rows(
    policy: Policy,
    prompts: list[list[int]],
    max_new_tokens: int,
    dtype: torch.dtype,
    *,
    report_routed_experts: bool = False,
) -> Rows:
    """A row for each prompt, with the policy's current weights, computed in `dtype`."""
    if policy.llama is not None:
        return LlamaRows(policy.llama, prompts, max_new_tokens, dtype, policy.device)
    return HuggingFaceRows(
        policy.model, prompts, max_new_tokens, dtype, policy.device, policy.routing if report_routed_experts else None
    )


def rows_at_once(policy: Policy, prompts: list[list[int]], n: int, max_rows: int) -> int:
    """How many rows, n of each prompt, may be opened together: `max_rows`, if their prefill has the memory."""
    if policy.llama is not None:
        return max_rows  # whose prefill goes in pieces
    return min(max_rows, n * max(1, _PREFILL_TOKENS // max(map(len, prompts))))


class _Columns:
    """Prompts as left-padded columns, and which of them each row sees."""

    def __init__(self, prompts: list[list[int]], max_new_tokens: int, device: torch.device) -> None:
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # [R], tokens
        self.count = max(map(len, prompts))
        padding = self.count - self.lengths[:, None]  # [R, 1]
        columns = torch.arange(self.count + max_new_tokens, device=device)
        self._seen = columns >= padding  # [R, columns at the end]
        # Without a mask, attention takes its fastest kernel.
        self._padded = min(map(len, prompts)) < self.count
        self.input_ids = torch.zeros(len(prompts), self.count, dtype=torch.int64, device=device)
        self.input_ids[self._seen[:, : self.count]] = torch.tensor(list(chain.from_iterable(prompts)), device=device)
        self.positions = (columns[: self.count] - padding).clamp(min=0)

    @property
    def seen(self) -> Tensor | None:
        """Which columns so far hold a token of the row [R, columns]; None where all do."""
        return self._seen[:, : self.count] if self._padded else None

    def select(self, rows: Tensor) -> None:
        self.lengths, self._seen = self.lengths[rows], self._seen[rows]

    def append(self) -> Tensor:
        """Open one more column; gives the rows' positions in it [R]."""
        self.count += 1
        self.lengths = self.lengths + 1
        return self.lengths - 1


class LlamaRows:
    """Rows of a Llama-like model, by llama.py, in a cache that grows by half when it is full."""

    routed_experts: Tensor | None = None

    def __init__(
        self, llama: Llama, prompts: list[list[int]], max_new_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._llama = llama
        self._weights = llama.weights(dtype)
        self._columns = _Columns(prompts, max_new_tokens, device)
        shape = (2, len(prompts), llama.kv_heads, self._columns.count, llama.head_dim)  # keys and values
        self._caches = [torch.empty(shape, dtype=dtype, device=device) for _ in self._weights.layers]
        self.logits = torch.cat(
            [self._prefill(rows) for rows in _ranges(len(prompts), max(1, _PREFILL_TOKENS // self._columns.count))]
        )

    def select(self, rows: Tensor) -> None:
        self._columns.select(rows)
        self._copy_caches(rows)
        self.logits = self.logits[rows]

    def append(self, tokens: Tensor) -> None:
        column = self._columns.count
        if column == self._caches[0].shape[3]:
            self._copy_caches(torch.arange(len(tokens), device=tokens.device))
        positions = self._columns.append()
        bias = self._bias()

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            cache = self._caches[layer]
            cache[0, :, :, column], cache[1, :, :, column] = keys, values
            shared = queries.unflatten(1, (self._llama.kv_heads, -1))  # [R, kv_heads, heads that share one, D]
            cached_keys, cached_values = cache[:, :, :, : column + 1]
            return attend_to_cache(shared, cached_keys, cached_values, bias, self._llama.scale).flatten(1)

        self.logits = self._head(self._llama(self._weights, tokens, positions, attend))

    def _copy_caches(self, rows: Tensor) -> None:
        """Keep these rows, with room for half as many columns again; one layer after the other, to spare memory."""
        used = self._columns.count
        for layer, old in enumerate(self._caches):
            new = old.new_empty(2, len(rows), old.shape[2], used + max(32, used // 2), old.shape[4])
            torch.index_select(old[:, :, :, :used], 1, rows, out=new[:, :, :, :used])
            self._caches[layer] = new

    def _prefill(self, rows: slice) -> Tensor:
        """The logits of what follows the prompts of these rows; their keys and values go to the cache."""
        input_ids, positions = self._columns.input_ids[rows], self._columns.positions[rows]
        count, length = input_ids.shape
        mask = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()[None, None]
        if self._columns.seen is not None:
            # A padding column sees itself, so that its softmax is not over nothing.
            mask = mask & self._columns.seen[rows, None, None] | torch.eye(length, dtype=torch.bool, device=mask.device)

        def attend(layer: int, *qkv: Tensor) -> Tensor:
            queries, keys, values = (part.unflatten(0, (count, length)).transpose(1, 2) for part in qkv)
            cache = self._caches[layer]
            cache[0, rows], cache[1, rows] = keys, values
            sharing = self._llama.heads // self._llama.kv_heads
            keys, values = (part.repeat_interleave(sharing, dim=1) for part in (keys, values))
            found = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=self._llama.scale)
            return found.transpose(1, 2).reshape(count * length, -1)

        hidden = self._llama(self._weights, input_ids.flatten(), positions.flatten(), attend)
        return self._head(hidden.unflatten(0, (count, length))[:, -1])

    def _bias(self) -> Tensor | None:
        """What every layer adds to the scores [R, kv_heads, 1, columns]; None where each row sees every column."""
        seen = self._columns.seen
        if seen is None:
            return None
        bias = torch.zeros(seen.shape, dtype=self._weights.dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
        return bias[:, None, None].repeat(1, self._llama.kv_heads, 1, 1)

    def _head(self, hidden: Tensor) -> Tensor:
        return linear(hidden.to(self._weights.head.dtype), self._weights.head)


def attend_to_cache(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """What one token of each row gathers from all columns of the row.

    Args:
        queries: [R, kv_heads, heads that share one, D].
        keys, values: [R, kv_heads, columns, D].
        bias: added to the scores, [R, kv_heads, 1, columns].

    Returns:
        [R, kv_heads, heads that share one, D].
    """
    if queries.device.type != "cpu" or queries.dtype == torch.bfloat16:
        return scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale)
    # With one query a row, two batched products take half of what the fused kernel does; in bfloat16, three times it.
    query, key, value = (part.flatten(0, 1) for part in (queries * scale, keys, values))
    scores = torch.bmm(query, key.transpose(1, 2))
    if bias is not None:
        scores += bias.flatten(0, 1)
    return torch.bmm(scores.softmax(-1), value).view_as(queries)


class HuggingFaceRows:
    """Rows of any causal LM with a KV cache, by its own forward.

    Args:
        dtype: of the products, by autocast where it is not that of the weights.
        routing: notes the experts of each forward pass.
    """

    def __init__(
        self,
        model: Any,
        prompts: list[list[int]],
        max_new_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        routing: RoutingReplay | None = None,
    ) -> None:
        self._model = model
        self._autocast = torch.autocast(device.type, dtype, enabled=dtype != model.dtype)
        self._routing = routing
        self.routed_experts: Tensor | None = None
        self._cache = row_cache(model.config)
        self._columns = _Columns(prompts, max_new_tokens, device)
        self.logits = self._forward(self._columns.input_ids, self._columns.positions)

    def select(self, rows: Tensor) -> None:
        self._cache.reorder_cache(rows)  # type: ignore[arg-type]  # declared for LongTensor, which int64 tensors are
        self._columns.select(rows)
        self.logits = self.logits[rows]

    def append(self, tokens: Tensor) -> None:
        positions = self._columns.append()
        self.logits = self._forward(tokens[:, None], positions[:, None])

    def _forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        if self._routing is None:
            return self._logits(input_ids, position_ids)
        with self._routing.forward_pass(input_ids.shape) as passed:
            logits = self._logits(input_ids, position_ids)
        self.routed_experts = passed.routed_experts
        return logits

    def _logits(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        with self._autocast:
            output = self._model(
                input_ids=input_ids,
                attention_mask=self._columns.seen,
                position_ids=position_ids,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        if getattr(output, "past_key_values", None) is not self._cache:
            raise TypeError(f"TorchEngine needs a model with a KV cache; {type(self._model).__name__} ignores it")
        return output.logits[:, -1]


def _ranges(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
