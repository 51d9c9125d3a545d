"""Tokens drawn from logits, by random numbers that the caller brings.

tokens, logprobs = sample_tokens(logits, uniforms, sampling)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from rloop_lightning.model.token_scores import logits_per_piece
from rloop_lightning.types import SamplingParams

# Tokens whose weights are summed first when one is drawn.
_BLOCK_TOKENS = 128


def sample_tokens(logits: Tensor, uniforms: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution: no sort, no global random state.

    Args:
        logits: [B, V].
        uniforms: [B] in [0, 1), the random numbers that decide.

    Returns:
        Tokens [B] int64, never one of probability 0, and their logprobs [B] float32, nats: under the distribution that
        was sampled from, renormalised after temperature, top-k and top-p; when greedy, under the softmax of the logits.
    """
    rows = max(1, logits_per_piece(logits.device) // logits.shape[-1])
    pieces = zip(logits.split(rows), uniforms.split(rows), strict=True)
    tokens, logprobs = zip(*(_sample_rows(*piece, sampling) for piece in pieces), strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _sample_rows(logits: Tensor, uniforms: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """`sample_tokens` of few enough rows that all its copies of the logits stay small."""
    logits = logits.float()
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    if sampling.temperature != 0:
        logits = _restrict(logits, sampling.top_k, sampling.top_p)
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()  # [B, V], the largest is 1
    if sampling.temperature == 0:
        tokens, total = logits.argmax(-1, keepdim=True), weights.sum(-1, keepdim=True)
    else:
        tokens, total = _invert(weights, uniforms[:, None])
    return tokens.squeeze(-1), (weights.gather(-1, tokens) / total).log().squeeze(-1)


def _invert(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulative weights pass the share `uniforms` [B, 1] of their total, and that total, both [B, 1].

    First among blocks of tokens, then inside one: a running sum over a whole vocabulary is the slowest way through it.
    """
    if behind := -weights.shape[-1] % _BLOCK_TOKENS:  # `pad` copies even where it adds nothing
        weights = pad(weights, (0, behind))
    weights = weights.unflatten(-1, (-1, _BLOCK_TOKENS))
    blocks = weights.sum(-1).cumsum(-1)  # [B, blocks]
    total = blocks[:, -1:]
    # Below the total whatever the rounding, so that some block's weights take the sum past it.
    wanted = (uniforms * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    block = torch.searchsorted(blocks, wanted, right=True)  # [B, 1]
    inside = weights.gather(1, block[:, :, None].expand(-1, -1, _BLOCK_TOKENS)).squeeze(1)  # [B, block]
    before = torch.where(block > 0, blocks.gather(-1, (block - 1).clamp(min=0)), 0.0)
    place = torch.searchsorted(inside.cumsum(-1), wanted - before, right=True).clamp(max=_BLOCK_TOKENS - 1)
    # Rounding may end at a token of weight 0: one draw in millions, which goes to the block's most likely token.
    place = torch.where(inside.gather(-1, place) > 0, place, inside.argmax(-1, keepdim=True))
    return block * _BLOCK_TOKENS + place, total


def _restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits [B, V] with -inf for what top-k, and then top-p of what is left, exclude. Ties at the k-th are kept."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        # A token is out when those before it already reach p.
        out = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(out.scatter(-1, order, out), -torch.inf)
    return logits
