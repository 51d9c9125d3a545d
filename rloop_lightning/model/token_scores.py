"""Logprobs and entropies of tokens from hidden states and a linear head.

    logprobs, entropies = token_scores(hidden, head, targets, temperature)

Everything goes piece by piece of the vocabulary: logits [N, V] never exist as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

LOGITS_PER_PIECE = {"cpu": 2**21, "cuda": 2**26}
"""By kind of device: a piece's logits hold about this many numbers at most, 8 MiB and 256 MiB in float32.

Each piece is gone through several times, so on a CPU it should fit the caches.
"""


def logits_per_piece(device: torch.device) -> int:
    """How many logits are worth working on at once."""
    return LOGITS_PER_PIECE.get(device.type, LOGITS_PER_PIECE["cuda"])


def token_scores(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logprobs of the targets, with gradients, and entropies of their distributions, without; float32, nats, both [N].

    The backward pass computes logits anew, piece by piece.

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
        states = hidden.to(head.dtype)
        chosen, total, weighted = (torch.zeros(len(hidden), device=hidden.device) for _ in range(3))
        largest = torch.full_like(total, torch.finfo(torch.float32).min)
        for start, part in _pieces(head, len(hidden)):
            logits = _logits(states, part, temperature)  # [N, v]
            place, inside = _places(targets, start, len(part))
            chosen += logits.gather(-1, place).masked_fill_(~inside, 0.0)[:, 0]
            # So far, with l the logits: total = sum exp(l - largest), weighted = sum exp(l - largest) (l - largest).
            before, largest = largest, largest.maximum(logits.amax(-1))
            shrunk = (before - largest).exp()
            weighted = shrunk * (weighted + total * (before - largest))
            weights = logits.sub_(largest[:, None]).exp()
            total = shrunk * total + weights.sum(-1)
            weighted += torch.linalg.vecdot(weights, logits)
        normalisers = largest + total.log()
        ctx.save_for_backward(hidden, head, targets, normalisers)
        entropies = total.log() - weighted / total
        ctx.mark_non_differentiable(entropies)
        return chosen - normalisers, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, Tensor, None, None]:
        hidden, head, targets, normalisers = ctx.saved_tensors
        scale = grad[:, None] / ctx.temperature
        states = hidden.to(head.dtype)
        grad_hidden = torch.zeros(hidden.shape, dtype=normalisers.dtype, device=hidden.device)
        grad_head = torch.empty_like(head)
        with torch.autocast(head.device.type, enabled=False):  # or the logits here would not be those of forward
            for start, part in _pieces(head, len(hidden)):
                probabilities = _logits(states, part, ctx.temperature).sub_(normalisers[:, None]).exp_()
                grad_logits = probabilities.mul_(-scale)  # [N, v]
                place, inside = _places(targets, start, len(part))
                grad_logits.scatter_add_(-1, place, scale * inside)
                grad_logits = grad_logits.to(head.dtype)
                grad_hidden += grad_logits @ part
                grad_head[start : start + len(part)] = grad_logits.t() @ states
        return grad_hidden.to(hidden.dtype), grad_head, None, None


def _pieces(head: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Pieces [v, H] of a head [V, H], and where they start in the vocabulary."""
    size = max(1, logits_per_piece(head.device) // max(1, rows))
    yield from ((start, head[start : start + size]) for start in range(0, len(head), size))


def _places(targets: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Where targets stand in a piece of the vocabulary, and whether they do, both [N, 1]."""
    place = targets[:, None] - start
    return place.clamp(0, size - 1), (place >= 0) & (place < size)


def _logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    """[n, v] float32, which nobody else holds."""
    logits = linear(hidden, head).float()
    return logits if temperature == 1 else logits.div_(temperature)
