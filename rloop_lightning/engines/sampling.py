"""Sampling of tokens from logits, with random numbers from the caller.

tokens, logprobs, kept = sample_tokens(logits, uniforms, sampling)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rloop_lightning.model.token_scores import logits_per_piece
from rloop_lightning.types import SamplingParams

# Tokens per block: sampling first selects a block, then a token in it.
_BLOCK_TOKENS = 128


class Kept(NamedTuple):
    """The tokens that top-k and top-p kept."""

    token_ids: Tensor  # [K] int32, row by row
    counts: Tensor  # [B] int32, those of each row

    @classmethod
    def joined(cls, pieces: Sequence[Kept]) -> Kept:
        """Those of the rows of several pieces, in order."""
        return cls(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def sample_tokens(logits: Tensor, uniforms: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor, Kept | None]:
    """Sample one token per row by inverting the cumulative distribution, without a sort or global random state.

    Args:
        logits: [B, V].
        uniforms: [B] in [0, 1), the random numbers.

    Returns:
        Tokens [B] int64, never one with probability 0, and their logprobs [B] float32, nats. Logprobs are under the
        sampling distribution, renormalised after temperature, top-k and top-p; when greedy, under the softmax of the
        logits. Then the kept tokens; None if nothing is truncated or `sampling` does not ask for them. A row with a NaN
        or positive infinite logit gets the logprob NaN and some token of the vocabulary.
    """
    rows = max(1, logits_per_piece(logits.device) // logits.shape[-1])
    pieces = zip(logits.split(rows), uniforms.split(rows), strict=True)
    tokens, logprobs, kept = zip(*(_sample_rows(*piece, sampling) for piece in pieces), strict=True)
    recorded = [piece for piece in kept if piece is not None]
    return torch.cat(tokens), torch.cat(logprobs), Kept.joined(recorded) if recorded else None


def _sample_rows(logits: Tensor, uniforms: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor, Kept | None]:
    """`sample_tokens` for few rows, so that its copies of the logits stay small."""
    logits = logits.float()
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    if sampling.temperature != 0:
        logits = _restrict(logits, sampling.top_k, sampling.top_p)
    kept = _kept(logits) if sampling.truncates and sampling.report_kept_tokens else None
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()  # [B, V], the largest is 1
    if sampling.temperature == 0:
        tokens, total = logits.argmax(-1, keepdim=True), weights.sum(-1, keepdim=True)
    else:
        tokens, total = _invert(weights, uniforms[:, None])
    return tokens.squeeze(-1), (weights.gather(-1, tokens) / total).log().squeeze(-1), kept


def _invert(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative weights pass the share `uniforms` [B, 1] of their total, and that total [B, 1].

    It searches among blocks of tokens first, then within one: a cumulative sum over the whole vocabulary is slow.
    """
    if behind := -weights.shape[-1] % _BLOCK_TOKENS:  # `pad` copies even if it adds nothing
        weights = pad(weights, (0, behind))
    weights = weights.unflatten(-1, (-1, _BLOCK_TOKENS))
    blocks = weights.sum(-1).cumsum(-1)  # [B, blocks]
    total = blocks[:, -1:]
    # Strictly below the total despite rounding, so that some block's cumulative weight exceeds it.
    wanted = (uniforms * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    # NaN weights compare as larger than everything, and would select a block beyond the last.
    block = torch.searchsorted(blocks, wanted, right=True).clamp(max=blocks.shape[-1] - 1)  # [B, 1]
    inside = weights.gather(1, block[:, :, None].expand(-1, -1, _BLOCK_TOKENS)).squeeze(1)  # [B, block]
    before = torch.where(block > 0, blocks.gather(-1, (block - 1).clamp(min=0)), 0.0)
    place = torch.searchsorted(inside.cumsum(-1), wanted - before, right=True).clamp(max=_BLOCK_TOKENS - 1)
    # Rounding may select a token of weight 0, once in millions of draws. Then take the block's most likely token.
    place = torch.where(inside.gather(-1, place) > 0, place, inside.argmax(-1, keepdim=True))
    return block * _BLOCK_TOKENS + place, total


def _kept(logits: Tensor) -> Kept:
    """The tokens of logits [B, V] above -inf."""
    kept = logits > -torch.inf
    return Kept(kept.nonzero()[:, 1].int(), kept.sum(-1, dtype=torch.int32))


def _restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set logits [B, V] outside top-k, then outside top-p of the rest, to -inf. Ties with the k-th are kept."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        # Drop a token if the tokens before it already reach p.
        out = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(out.scatter(-1, order, out), -torch.inf)
    return logits
