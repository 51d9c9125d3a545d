"""A preallocated KV cache whose rows can be repeated and dropped.

    cache = row_cache(model.config, dtype)
    model(..., past_key_values=cache)
    cache.reorder_cache(rows)           # continue with these rows
    joined([cache, another])            # the rows of both

For each token, Hugging Face's own cache copies everything. This one writes only the new token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


def row_cache(config: Any, dtype: torch.dtype) -> Cache:
    """An empty KV cache for a model. Its `reorder_cache(rows)` may repeat and drop rows.

    Attention layers get a `RowLayer`. So do those with a sliding window, whose mask hides older tokens. Other layers
    (linear attention) get Hugging Face's own cache.
    """
    layers = DynamicCache(config=config).layers
    attention = (DynamicLayer, DynamicSlidingWindowLayer)
    return Cache(
        layers=[
            RowLayer(dtype, sees_all=type(layer) is DynamicLayer) if type(layer) in attention else layer
            for layer in layers
        ]
    )


def joins(cache: Cache) -> bool:
    """Whether `joined` supports this cache."""
    return all(isinstance(layer, RowLayer) for layer in cache.layers)


def joined(caches: Sequence[Cache]) -> Cache:
    """A cache with the rows of several caches of equal length, in order."""
    return Cache(layers=[RowLayer.joined(layers) for layers in zip(*(cache.layers for cache in caches), strict=True)])


class RowLayer(DynamicLayer):
    """Keys and values [B, heads, length, dim] of one layer, as views of larger buffers.

    Appending a token writes that token and copies nothing else. Full buffers grow by half, so memory depends on the
    actual lengths, not on `max_new_tokens`.

    Args:
        dtype: dtype of keys and values.
        sees_all: whether the layer's attention sees all earlier tokens, not only those of a window.
    """

    place: Tensor | None = None
    """Where `update` writes one column [1] int64, on the device. It then returns the whole buffers."""

    def __init__(self, dtype: torch.dtype, *, sees_all: bool = True) -> None:
        super().__init__()
        self._dtype = dtype
        self.sees_all = sees_all
        self._buffers: list[Tensor] = []  # keys and values, each [B, heads, capacity, dim]
        self._length = 0

    @classmethod
    def joined(cls, layers: Sequence[RowLayer]) -> RowLayer:
        """A layer with the rows of several layers of equal length."""
        layer = cls(layers[0]._dtype, sees_all=layers[0].sees_all)
        keys, values = (torch.cat([getattr(one, name) for one in layers]) for name in ("keys", "values"))
        layer.update(keys, values)
        return layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, heads, new, dim] and return all keys and values so far."""
        key_states, value_states = key_states.to(self._dtype), value_states.to(self._dtype)
        if self.place is not None:
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer.index_copy_(2, self.place, states)
            keys, values = self._buffers
            return keys, values
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers, self._length = [key_states[:, :, :0], value_states[:, :, :0]], 0
        start, end = self._length, self._length + key_states.shape[2]
        self.make_room(end)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        return self._show(end)

    @property
    def length(self) -> int:
        """Columns that are written."""
        return self._length

    @property
    def capacity(self) -> int:
        """Columns of the buffers."""
        return self._buffers[0].shape[2]

    def make_room(self, columns: int) -> None:
        """Grow the buffers by half if they have fewer columns."""
        if columns > self.capacity:
            room = columns + max(32, columns // 2) - self.capacity
            self._buffers = [pad(buffer, (0, 0, 0, room)) for buffer in self._buffers]
            self._show(self._length)  # the views would keep the old buffers

    def advance(self) -> None:
        """Count the column that was written at `place`."""
        self._show(self._length + 1)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Continue with these rows, which may repeat."""
        self._buffers = [buffer.index_select(0, beam_idx) for buffer in self._buffers]
        self._show(self._length)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, :length] for buffer in self._buffers)
        self.keys, self.values, self._length = keys, values, length
        return keys, values
