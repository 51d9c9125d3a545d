"""Attention in plain PyTorch operations, with soft caps and attention sinks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The attention output, [B, heads, T, Dv].

    Args:
        query: [B, heads, T, D].
        key, value: [B, kv_heads, S, D] and [B, kv_heads, S, Dv].
        mask: bool, true where a query sees a key, broadcast to [B, heads, T, S]; None is causal, where the last query
            sees every key.
        scaling: factor of the scores.
        softcap: c caps the scores by c tanh(score / c) (Gemma 2, arXiv 2408.00118).
        sinks: [heads], an extra score per head in the softmax, without a value (gpt-oss).
    """
    sharing = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(sharing, dim=1) for part in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        ones = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device)
        mask = ones.tril(scores.shape[3] - scores.shape[2])
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is None:
        return torch.matmul(scores.softmax(-1).to(value.dtype), value)
    sink = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
    weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    return torch.matmul(weights.to(value.dtype), value)


def attend_single(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """The attention output for one query per row, [B, 1, heads, Dv], by two batched products that copy no keys.

    Args: query [B, heads, 1, D]; key, value [B, kv_heads, S, ...]; mask [B, 1, 1, S] bool, None if all keys are seen.
    """
    rows, kv_heads = key.shape[:2]
    grouped = query.reshape(rows * kv_heads, -1, query.shape[3])  # heads that share keys become queries of one head
    scores = torch.bmm(grouped * scaling, key.flatten(0, 1).transpose(1, 2)).view(rows, kv_heads, -1, key.shape[2])
    if mask is not None:
        scores = scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    return torch.bmm(scores.softmax(-1).flatten(0, 1), value.flatten(0, 1)).view(rows, 1, -1, value.shape[3])


def attend_single_fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """`attend_single` by PyTorch's kernel. Heads that share keys become queries of one head: no keys are repeated."""
    rows, kv_heads = key.shape[:2]
    grouped = query.reshape(rows, kv_heads, -1, query.shape[3])
    found = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(rows, 1, -1, value.shape[3])
