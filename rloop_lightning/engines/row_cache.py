"""A preallocated KV cache whose rows can be repeated, dropped and replaced.

    cache = row_cache(model.config, dtype)
    model(..., past_key_values=cache)
    cache.reorder_cache(rows)           # continue with these rows
    joined([cache, another])            # the rows of both
    shift(cache, -5)                    # without the first five columns
    replace(cache, rows, another, of)   # rows of another cache in the place of these

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
    """Whether `joined`, `shift` and `replace` support this cache."""
    return all(isinstance(layer, RowLayer) for layer in cache.layers)


def joined(caches: Sequence[Cache]) -> Cache:
    """A cache with the rows of several caches of equal length, in order."""
    return Cache(layers=[RowLayer.joined(layers) for layers in zip(*(cache.layers for cache in caches), strict=True)])


def shift(cache: Any, columns: int) -> None:
    """Move all columns to the right, which adds unwritten ones on the left; if negative, drop as many on the left."""
    for layer in cache.layers:
        layer.shift(columns)


def replace(cache: Any, rows: Tensor, other: Any, of: Tensor) -> None:
    """Continue in `rows` [K] with the rows `of` [K] of another cache, which has at most as many columns.

    Both end in the same column. What is on the left of the other's columns keeps its old values.
    """
    for layer, new in zip(cache.layers, other.layers, strict=True):
        layer.replace(rows, new.keys[of], new.values[of])


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
            room = _with_room(columns) - self.capacity
            self._buffers = [pad(buffer, (0, 0, 0, room)) for buffer in self._buffers]
            self._show(self._length)  # the views would keep the old buffers

    def advance(self) -> None:
        """Count the column that was written at `place`."""
        self._show(self._length + 1)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Continue with these rows, which may repeat. Room for few columns remains."""
        capacity = min(self.capacity, _with_room(self._length))
        self._buffers = [buffer[:, :, :capacity].index_select(0, beam_idx) for buffer in self._buffers]
        self._show(self._length)

    def shift(self, columns: int) -> None:
        """Move all columns to the right; if negative, drop as many on the left. The buffers only ever grow."""
        kept = [buffer[:, :, max(0, -columns) : self._length].clone() for buffer in self._buffers]
        length = self._length + columns
        self.make_room(length)
        for buffer, states in zip(self._buffers, kept, strict=True):
            buffer[:, :, max(0, columns) : length] = states
            buffer[:, :, : max(0, columns)] = 0  # masked, but NaN would show
        self._show(length)

    def replace(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write the last columns of some rows; keys and values are [K, heads, columns, dim]."""
        start = self._length - keys.shape[2]
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            buffer[rows, :, start : self._length] = states.to(self._dtype)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, :length] for buffer in self._buffers)
        self.keys, self.values, self._length = keys, values, length
        return keys, values


def _with_room(columns: int) -> int:
    """The columns of a buffer that holds so many."""
    return columns + max(32, columns // 2)
