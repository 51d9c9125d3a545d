"""Logprobs and entropies of tokens from hidden states and a linear head.

    logprobs, entropies = token_scores(hidden, head, targets, temperature)

Everything goes in chunks, of rows forward and of the vocabulary backward: logits [N, V] never exist as a whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

LOGITS_PER_CHUNK = 2**24
"""A chunk's logits hold at most this many numbers: 64 MiB in float32, whatever the vocabulary."""


def rows_per_chunk(vocabulary: int) -> int:
    """How many rows of logits are computed at once."""
    return max(1, LOGITS_PER_CHUNK // vocabulary)


def token_scores(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logprobs of the targets, with gradients, and entropies of their distributions, without; float32, nats, both [N].

    The backward pass computes logits anew, chunk by chunk.

    Args:
        hidden: [N, H].
        head: [V, H]; its dtype is that of the products.
        targets: [N] int64.
        temperature: divides the logits.
    """
    return _TokenScores.apply(hidden, head, targets, temperature)


class _TokenScores(torch.autograd.Function):
    """d logp(target) / d logits = (onehot(target) - p) / temperature."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        ctx.temperature = temperature
        chunk = rows_per_chunk(len(head))
        pieces = []
        for states, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = _logits(states, head, temperature)  # [n, V]
            largest = logits.amax(-1, keepdim=True)
            chosen = logits.gather(-1, wanted[:, None]).squeeze(-1)
            weights = logits.sub_(largest).exp()
            total = weights.sum(-1)
            mean = torch.bmm(weights[:, None], logits[:, :, None]).flatten() / total
            normaliser = total.log()
            pieces.append((chosen - largest.squeeze(-1) - normaliser, normaliser - mean, normaliser + largest[:, 0]))
        logprobs, entropies, normalisers = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        ctx.save_for_backward(hidden, head, targets, normalisers)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, Tensor, None, None]:
        hidden, head, targets, normalisers = ctx.saved_tensors
        scale = grad[:, None] / ctx.temperature
        states = hidden.to(head.dtype)
        grad_hidden = torch.zeros(hidden.shape, dtype=normalisers.dtype, device=hidden.device)
        grad_head = torch.empty_like(head)
        # By pieces of the vocabulary, not of the rows, whose gradients of the head would have to be added up.
        chunk = max(1, LOGITS_PER_CHUNK // max(1, len(hidden)))
        with torch.autocast(head.device.type, enabled=False):  # or the logits here would not be those of forward
            for start in range(0, len(head), chunk):
                part = head[start : start + chunk]  # [v, H]
                probabilities = _logits(states, part, ctx.temperature).sub_(normalisers[:, None]).exp_()
                grad_logits = probabilities.mul_(-scale)  # [N, v]
                place = targets[:, None] - start
                inside = (place >= 0) & (place < len(part))
                grad_logits.scatter_add_(-1, place.clamp(0, len(part) - 1), scale * inside)
                grad_logits = grad_logits.to(head.dtype)
                grad_hidden += grad_logits @ part
                grad_head[start : start + chunk] = grad_logits.t() @ states
        return grad_hidden.to(hidden.dtype), grad_head, None, None


def _logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    """[n, V] float32, which nobody else holds."""
    logits = linear(hidden.to(head.dtype), head).float()
    return logits if temperature == 1 else logits.div_(temperature)
