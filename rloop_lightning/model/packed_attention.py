"""Packed rows in a Hugging Face model: its attention function and its mask function.

    install(model)              # once: from now on its attention accepts packed rows
    model.get_decoder()(input_ids=packed.input_ids[None], position_ids=packed.positions[None],
                        attention_mask=packed_mask(packed), use_cache=False)

transformers passes the 2-D mask of a call to its mask function, and the result to the attention of each layer. Both are
registered here. For a packed row, the mask function combines the row with the model's own mask rule (causal, sliding
window, chunks), and attention applies both. Other calls are computed as before, except that single queries on a CPU
take a faster path.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rloop_lightning.model.attend import attend, attend_single, attend_single_fused
from rloop_lightning.model.block_attention import BlockAttention
from rloop_lightning.model.checkpointing import keeping
from rloop_lightning.model.packing import PackedBatch
from rloop_lightning.model.product_attention import Sees
from rloop_lightning.model.row_attention import RowAttention

_PREFIX = "rloop_"
_BASES = ("eager", "sdpa", "flash_attention_2")


def install(model: Any) -> bool:
    """Make a model's attention accept packed rows in addition to its other inputs. Returns whether that worked."""
    base = model.config._attn_implementation or "eager"
    if base.startswith(_PREFIX):
        return True
    if base not in _BASES:
        return False
    try:
        model.set_attn_implementation(f"{_PREFIX}{base}")
    except ValueError:
        return False
    return model.config._attn_implementation == f"{_PREFIX}{base}"


def switch_attention(model: Any, base: str, *, packs: bool) -> None:
    """Switch the attention of ordinary calls to another implementation of transformers.

    Args:
        packs: whether the model accepts packed rows; it keeps doing so.

    Raises:
        ImportError, ValueError: the implementation can't be used.
    """
    model.set_attn_implementation(base)
    if packs:
        install(model)


def packed_mask(packed: PackedBatch) -> Tensor:
    """The 2-D attention mask [1, N] that carries a packed row."""
    mask = torch.ones(1, len(packed.input_ids), dtype=torch.bool, device=packed.input_ids.device)
    mask.packed = packed  # type: ignore[attr-defined]  # passes the row through to the mask function
    return mask


class PackedMask:
    """A packed row with its mask rule; layers get it as their attention mask."""

    def __init__(self, packed: PackedBatch, sees: Sees) -> None:
        on_cpu = packed.input_ids.device.type == "cpu"
        self.attention = BlockAttention(packed, sees) if on_cpu else RowAttention(packed, sees)


def _register(base: str) -> None:
    """Register an implementation that computes packed rows and delegates all other calls to `base`."""
    masked_like = "sdpa" if base == "eager" else base

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if isinstance(attention_mask, PackedMask):
            return _attend_packed(query, key, value, attention_mask, **kwargs), None
        if base not in ("sdpa", "eager"):
            return ALL_ATTENTION_FUNCTIONS[base](module, query, key, value, attention_mask, **kwargs)
        return _attend_rows(module, query, key, value, attention_mask, fused=base == "sdpa", **kwargs), None

    def mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        packed = getattr(attention_mask, "packed", None)
        if packed is not None:
            return PackedMask(packed, kwargs["mask_function"])
        return ALL_MASK_ATTENTION_FUNCTIONS[masked_like](*args, attention_mask=attention_mask, **kwargs)

    AttentionInterface.register(f"{_PREFIX}{base}", attention)
    AttentionMaskInterface.register(f"{_PREFIX}{base}", mask)


def _attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: PackedMask,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """The attention output of a packed row, [1, N, heads, Dv]; query, key and value are [1, heads, N, D]."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries, keys, values = (part[0].transpose(0, 1) for part in _of_one_dtype(query, key, value))
    with torch.autocast(query.device.type, enabled=False), keeping():
        return mask.attention(queries, keys, values, scaling, softcap, s_aux)[None]


def _of_one_dtype(*parts: Tensor) -> tuple[Tensor, ...]:
    """Cast to one dtype: under autocast, rotated queries and keys have a wider dtype than values."""
    device = parts[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parts[0].dtype
    return tuple(part.to(dtype) for part in parts)


def _attend_rows(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    fused: bool,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """The attention output of padded rows, or of rows with a cache, [B, T, heads, Dv].

    Args:
        query: [B, heads, T, D].
        key, value: [B, kv_heads, S, D] and [B, kv_heads, S, Dv].
        mask: [B, 1, T, S] bool; None is causal.
        fused: use PyTorch's kernel where it supports the arguments.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = _of_one_dtype(query, key, value)
    plain = softcap is None and s_aux is None
    # With one query per row, two batched products take half the fused kernel's time; in bfloat16, three times as long.
    if query.shape[2] == 1 and plain and query.device.type == "cpu" and query.dtype == torch.float32:
        return attend_single(query, key, value, mask, scaling)
    if query.shape[2] == 1 and plain and fused and query.device.type == "cuda":
        return attend_single_fused(query, key, value, mask, scaling)
    if fused and plain:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, scaling=scaling, **kwargs)[0]
    return attend(query, key, value, mask, scaling, softcap, s_aux).transpose(1, 2)


for _base in _BASES:  # registered at import, so that a process that unpickles a model has them
    _register(_base)
