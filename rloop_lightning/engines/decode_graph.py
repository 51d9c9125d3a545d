"""Decoding as a CUDA graph: one token for each row, recorded once and replayed for many tokens.

    graph = DecodeGraph(forward, cache, seen)
    logits = graph.append(tokens, positions)        # [R, V], valid until the next call

Decoding a token launches hundreds of small kernels, for which a GPU waits: 30 ms for a 0.6 B model on an H100, whatever
the number of rows. A replay launches them all at once. Its tensors keep their shapes and addresses, so attention reads
whole buffers of keys and values and masks the columns that are not written yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from rloop_lightning.engines.row_cache import RowLayer
from rloop_lightning.model.policy import Policy

_log = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor, Tensor, Cache], Tensor]
"""(tokens [R, 1], positions [R, 1], mask [R, 1, 1, columns] bool, cache) to the logits after them [R, V]."""


def can_record(policy: Policy, cache: Any) -> bool:
    """Whether a policy's decoding can be recorded: on a GPU, with full attention in every layer."""
    return (
        policy.device.type == "cuda"
        and policy.packs
        and policy.model.config._attn_implementation.removeprefix("rloop_") in ("sdpa", "eager")
        and all(type(layer) is RowLayer and layer.sees_all for layer in cache.layers)
    )


class DecodeGraph:
    """The recorded step of a batch of rows. A new one is needed when rows change or a buffer is full.

    Args:
        forward: the step.
        cache: keys and values of the rows; gets room for another column.
        seen: whether a column contains a token of the row [R, columns].

    Raises:
        RuntimeError: the step can't be recorded; it waits for the device, say.
    """

    def __init__(self, forward: Forward, cache: Cache, seen: Tensor) -> None:
        self._layers: list[Any] = list(cache.layers)
        self._cache = cache
        self._forward = forward
        for layer in self._layers:
            layer.make_room(layer.length + 1)
        capacity = self._layers[0].capacity
        rows, device = len(seen), seen.device
        self._tokens, self._positions = (torch.zeros(rows, 1, dtype=torch.int64, device=device) for _ in range(2))
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._mask = torch.zeros(rows, 1, 1, capacity, dtype=torch.bool, device=device)
        self.show(seen)
        self._graph: Any = None
        self._logits: Tensor | None = None

    @property
    def is_recorded(self) -> bool:
        return self._graph is not None

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another column."""
        return self._layers[0].length == self._layers[0].capacity

    def show(self, seen: Tensor) -> None:
        """Attend to these columns from now on, after rows were replaced or columns dropped."""
        self._mask.zero_()
        self._mask[:, 0, 0, : seen.shape[1]] = seen

    def append(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Append one token to each row, [R] each. Returns the logits after them, valid until the next call."""
        column = self._layers[0].length
        self._tokens[:, 0], self._positions[:, 0] = tokens, positions
        self._place.fill_(column)
        self._mask[:, 0, 0, column] = True
        if tokens.device.type == "cpu":  # nothing to record; the same step
            self._logits = self._step()
        else:
            if self._graph is None:
                self._record()
            self._graph.replay()
        for layer in self._layers:
            layer.advance()
        assert self._logits is not None
        return self._logits

    def _record(self) -> None:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._step()  # prepares what can't be recorded: libraries' workspaces and plans
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._step()
        self._graph = graph

    def _step(self) -> Tensor:
        """Writes the tokens' keys and values at `_place`; writing them again changes nothing."""
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a cached cast would belong to the graph's memory
        for layer in self._layers:
            layer.place = self._place
        try:
            return self._forward(self._tokens, self._positions, self._mask, self._cache)
        finally:
            for layer in self._layers:
                layer.place = None
            torch.set_autocast_cache_enabled(cached)


def warn_not_recorded(error: RuntimeError) -> None:
    _log.warning(f"decoding runs kernel by kernel, as it can't be recorded as a CUDA graph: {error}")
