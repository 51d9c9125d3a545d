"""Attention over a packed row on a GPU, by kernels that do not materialise the scores.

    attention = RowAttention(packed, sees)
    attention(queries, keys, values, scaling)       # [N, heads, D] to [N, heads, Dv]

In half precision, causal masks and sliding windows use a varlen kernel (sequences of varying length): flash-attn's if
it is installed, else PyTorch's own. A completion's queries see its prompt's keys and its own. Everything else (float32,
other masks, soft caps, sinks, values narrower than keys) uses PyTorch's FlexAttention.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention
from torch.nn.functional import pad

from rloop_lightning.model.packing import PackedBatch
from rloop_lightning.model.product_attention import Sees

# Queries per chunk when the mask is classified, so that the N x N mask is never materialised.
_QUERIES_AT_ONCE = 1024
_HALF_PRECISION = (torch.bfloat16, torch.float16)

VarlenKernel = Callable[..., Tensor]
"""(queries [Q, heads, D], keys and values [K, kv_heads, D], cumulative lengths of query sequences [1 + S] and of key
sequences [1 + S], the longest of either, scaling=, window=) to [Q, heads, D].

The mask is causal, and the last query of a sequence sees its last key. `window` is the largest number of keys that a
query sees, its own included; 0 is no limit.
"""


class RowAttention:
    """Attention over a packed batch. All layers with the same mask share one instance.

    Args:
        kernel: the varlen kernel; None is the installed one, in half precision only.
    """

    def __init__(self, packed: PackedBatch, sees: Sees, kernel: VarlenKernel | None = None) -> None:
        self._packed = packed
        self._sees = sees
        self._kernel = kernel

    def __call__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """The attention output, [N, heads, Dv]; arguments as for `BlockAttention`."""
        plain = softcap is None and sinks is None and keys.shape[2] == values.shape[2]
        kernel = self._kernel or (_installed_kernel() if queries.dtype in _HALF_PRECISION else None)
        if kernel and plain and self._window is not None:
            return self._varlen(kernel, queries, keys, values, scaling, self._window)
        return self._flex(queries, keys, values, scaling, softcap, sinks)

    def _varlen(
        self, kernel: VarlenKernel, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int
    ) -> Tensor:
        found = kernel(
            queries[: self._packed.tokens],
            keys.index_select(0, self._keys),
            values.index_select(0, self._keys),
            *self._sequences,
            scaling=scaling,
            window=window,
        )
        return pad(found, (0, 0, 0, 0, 0, self._packed.filling))

    def _flex(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            assert softcap is not None
            return softcap * torch.tanh(score / softcap)

        found, more = _flex_kernel(queries.device.type)(
            *(part.transpose(0, 1)[None] for part in (queries, keys, values)),
            score_mod=None if softcap is None else capped,
            block_mask=self._block_mask,
            scale=scaling,
            enable_gqa=queries.shape[1] != keys.shape[1],
            return_aux=AuxRequest(lse=True),
        )  # [1, heads, N, Dv], and the scores' log-sum-exp [1, heads, N]
        if sinks is not None:  # a sink takes a share of the softmax and has no value
            found = found * torch.sigmoid(more.lse - sinks[:, None]).to(found.dtype)[..., None]
        return found[0].transpose(0, 1)

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

    @cached_property
    def _window(self) -> int | None:
        """The window of a sliding-window mask, 0 for a causal mask, None for any other mask."""
        longest = int(self._packed.positions.max()) + 1
        key = torch.arange(longest, device=self._packed.positions.device)
        zero, counts = key.new_zeros(()), []
        for query in key.split(_QUERIES_AT_ONCE):
            seen = self._sees(zero, zero, query[:, None], key[None])
            count = seen.sum(1)
            in_a_row = seen == ((key[None] <= query[:, None]) & (key[None] > query[:, None] - count[:, None]))
            if not in_a_row.all():
                return None
            counts.append(count)
        count = torch.cat(counts)
        if torch.equal(count, key + 1):
            return 0
        widest = int(count[-1])
        return widest if torch.equal(count, (key + 1).clamp(max=widest)) else None

    @cached_property
    def _block_mask(self) -> BlockMask:
        packed = self._packed
        # Each filling token is a sequence of its own and sees nothing else.
        filling = len(packed.lengths) + torch.arange(packed.filling, device=packed.positions.device)
        sequences = torch.cat([packed.sequences, filling])
        prompt_of = torch.arange(len(packed.lengths) + packed.filling, device=packed.positions.device)
        prompt_of[packed.prompts : len(packed.lengths)] = packed.prompt_of_row
        positions, sees = packed.positions, self._sees

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = sequences[query]
            of_sequence = (sequences[key] == own) | (sequences[key] == prompt_of[own])
            return of_sequence & sees(batch, head, positions[query], positions[key])

        count = len(packed.input_ids)
        device = packed.positions.device
        compiled = {"_compile": True} if device.type != "cpu" else {}  # otherwise the full mask would be materialised
        return create_block_mask(visible, None, None, count, count, device=device, **compiled)


def _ends(lengths: Tensor) -> Tensor:
    return pad(lengths.cumsum(0), (1, 0)).int()


@cache
def _flex_kernel(device: str) -> Any:
    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=True)


@cache
def _installed_kernel() -> VarlenKernel | None:
    """flash-attn's varlen kernel, else PyTorch's, else None: older PyTorch versions have none."""
    with suppress(ImportError):
        from flash_attn import flash_attn_varlen_func

        return lambda *sequences, scaling, window: flash_attn_varlen_func(
            *sequences, softmax_scale=scaling, causal=True, window_size=(window - 1, 0) if window else (-1, -1)
        )
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        def torch_kernel(*sequences: Any, scaling: float, window: int) -> Tensor:
            found = varlen_attn(
                *sequences, scale=scaling, window_size=(window - 1 if window else -1, 0), enable_gqa=True
            )
            assert isinstance(found, Tensor)  # it returns a pair only on request
            return found

        return torch_kernel
    return None
