"""Attention over a packed row by a kernel for sequences of varying length (varlen).

    attention = VarlenAttention(packed, window, installed_kernel())
    attention(queries, keys, values, scaling)       # [N, heads, D] to [N, heads, D]

A completion's queries see its prompt's keys and its own; keys are gathered accordingly. The kernel is flash-attn's if
it is installed, else PyTorch's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rloop_lightning.model.packing import PackedBatch

VarlenKernel = Callable[..., Tensor]
"""(queries [Q, heads, D], keys and values [K, kv_heads, D], cumulative lengths of query sequences [1 + S] and of key
sequences [1 + S], the longest of either, scaling=, window=) to [Q, heads, D].

The mask is causal, and the last query of a sequence sees its last key. `window` is the largest number of keys that a
query sees, its own included; 0 is no limit.
"""


class VarlenAttention:
    """Attention over a packed batch. All layers with the same mask share one instance.

    Args:
        packed: the batch.
        window: the largest number of keys that a query sees, its own included; 0 is a causal mask.
        kernel: the kernel.
    """

    def __init__(self, packed: PackedBatch, window: int, kernel: VarlenKernel) -> None:
        self._packed = packed
        self._window = window
        self._kernel = kernel

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """The attention output, [N, heads, D].

        Args:
            queries: [N, heads, D].
            keys, values: [N, kv_heads, D].
            scaling: factor of the scores.
        """
        found = self._kernel(
            queries[: self._packed.tokens],
            keys.index_select(0, self._keys),
            values.index_select(0, self._keys),
            *self._sequences,
            scaling=scaling,
            window=self._window,
        )
        return pad(found, (0, 0, 0, 0, 0, self._packed.filling))

    @cached_property
    def _sequences(self) -> tuple[Tensor, Tensor, int, int]:
        """Ends of the query and of the key sequences, and the longest of each; one wait for the device."""
        lengths, packed = self._packed.lengths, self._packed
        key_lengths = torch.cat([lengths[: packed.prompts], lengths[packed.prompts :] + lengths[packed.prompt_of_row]])
        longest, longest_keys = torch.stack([lengths.max(), key_lengths.max()]).tolist()
        return _ends(lengths), _ends(key_lengths), longest, longest_keys

    @cached_property
    def _keys(self) -> Tensor:
        """Indices of the keys that each sequence sees: a prompt its own, a completion its prompt's and its own."""
        packed, starts = self._packed, self._packed.starts
        prompts = torch.arange(packed.prompts, device=starts.device)
        completions = packed.prompts + torch.arange(len(packed.prompt_of_row), device=starts.device)
        both = torch.stack([packed.prompt_of_row, completions], dim=1).flatten()
        pieces = torch.cat([prompts, both])
        lengths = packed.lengths[pieces]
        ends = lengths.cumsum(0)
        places = torch.arange(int(ends[-1]), device=starts.device)
        return (starts[pieces] - (ends - lengths)).repeat_interleave(lengths) + places


def _ends(lengths: Tensor) -> Tensor:
    return pad(lengths.cumsum(0), (1, 0)).int()


@cache
def installed_kernel() -> VarlenKernel | None:
    """flash-attn's varlen kernel, else PyTorch's, else None."""
    with suppress(ImportError):
        from flash_attn import flash_attn_varlen_func

        return lambda *sequences, scaling, window: flash_attn_varlen_func(
            *sequences, softmax_scale=scaling, causal=True, window_size=(window - 1, 0) if window else (-1, -1)
        )
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        # Before PyTorch 2.13 it has no such argument, and shares keys among heads without it.
        shared: Any = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

        def torch_kernel(*sequences: Any, scaling: float, window: int) -> Tensor:
            found = varlen_attn(*sequences, scale=scaling, window_size=(window - 1 if window else -1, 0), **shared)
            assert isinstance(found, Tensor)  # it returns a pair only on request
            return found

        return torch_kernel
    return None


def varlen_operations() -> list[Any]:
    """PyTorch's operations that the installed kernel consists of."""
    if installed_kernel() is None:
        return []
    if find_spec("flash_attn") is not None:
        return [torch.ops.flash_attn._flash_attn_varlen_forward.default]
    return [torch.ops.torch_attn._varlen_attn.default]
