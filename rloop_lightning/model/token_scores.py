"""Logprobs and entropies of tokens from hidden states and a linear head.

    logprobs, entropies = token_scores(hidden, head, targets, temperature, entropy_gradient=False)

The computation splits the vocabulary into pieces, so that logits [N, V] are never materialised as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

LOGITS_PER_PIECE = {"cpu": 2**21, "cuda": 2**26}
"""Upper bound of the logits per piece by device type, 8 MiB and 256 MiB in float32.

Each piece is read several times, so on a CPU it should fit the caches.
"""


def logits_per_piece(device: torch.device) -> int:
    """The upper bound of the logits per piece for a device."""
    return LOGITS_PER_PIECE.get(device.type, LOGITS_PER_PIECE["cuda"])


def token_scores(
    hidden: Tensor, head: Tensor, targets: Tensor, temperature: float, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Logprobs of the targets and entropies of their distributions; float32, nats, both [N].

    Logprobs have gradients, entropies only on request. The backward pass recomputes the logits piece by piece.

    Args:
        hidden: [N, H].
        head: [V, H]; the products use its dtype.
        targets: [N] int64.
        temperature: divides the logits.
        entropy_gradient: whether entropies have gradients as well.
    """
    logprobs, entropies = _TokenScores.apply(hidden, head, targets, temperature)
    return logprobs, entropies if entropy_gradient else entropies.detach()


class _TokenScores(torch.autograd.Function):
    """Logprob and entropy of p = softmax(l), l = hidden @ head.T / temperature.

    d logp(target) / d l = onehot(target) - p,      d entropy / d l = -p (log p + entropy)
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        states = hidden.to(head.dtype)
        chosen, total, weighted = (torch.zeros(len(hidden), device=hidden.device) for _ in range(3))
        largest = torch.full_like(total, torch.finfo(torch.float32).min)
        for start, part in _pieces(head, len(hidden)):
            logits = _logits(states, part, temperature)  # [N, v]
            place, inside = _places(targets, start, len(part))
            chosen += logits.gather(-1, place).masked_fill_(~inside, 0.0)[:, 0]
            # Running values over logits l: total = sum exp(l - largest), weighted = sum exp(l - largest) (l - largest).
            before, largest = largest, largest.maximum(logits.amax(-1))
            shrunk = (before - largest).exp()
            weighted = shrunk * (weighted + total * (before - largest))
            weights = logits.sub_(largest[:, None]).exp()
            total = shrunk * total + weights.sum(-1)
            weighted += torch.linalg.vecdot(weights, logits)
        normalisers = largest + total.log()
        entropies = total.log() - weighted / total
        ctx.save_for_backward(hidden, head, targets, normalisers, entropies)
        return chosen - normalisers, entropies

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None
    ) -> tuple[Tensor, Tensor, None, None]:
        hidden, head, targets, normalisers, entropies = ctx.saved_tensors
        of_logprobs = torch.zeros_like(normalisers) if grad_logprobs is None else grad_logprobs / ctx.temperature
        of_logprobs = of_logprobs[:, None]
        states = hidden.to(head.dtype)
        grad_hidden = torch.zeros(hidden.shape, dtype=normalisers.dtype, device=hidden.device)
        grad_head = torch.empty_like(head)
        with torch.autocast(head.device.type, enabled=False):  # recomputes exactly the logits of the forward pass
            for start, part in _pieces(head, len(hidden)):
                logprobs = _logits(states, part, ctx.temperature).sub_(normalisers[:, None])  # [N, v]
                slopes = -of_logprobs
                if grad_entropies is not None:
                    slopes = slopes - grad_entropies[:, None] / ctx.temperature * (logprobs + entropies[:, None])
                grad_logits = logprobs.exp_().mul_(slopes)
                place, inside = _places(targets, start, len(part))
                grad_logits.scatter_add_(-1, place, of_logprobs * inside)
                grad_logits = grad_logits.to(head.dtype)
                grad_hidden += grad_logits @ part
                grad_head[start : start + len(part)] = grad_logits.t() @ states
        return grad_hidden.to(hidden.dtype), grad_head, None, None


def _pieces(head: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Pieces [v, H] of a head [V, H], each with its start in the vocabulary."""
    size = max(1, logits_per_piece(head.device) // max(1, rows))
    yield from ((start, head[start : start + size]) for start in range(0, len(head), size))


def _places(targets: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """The index of each target within a piece of the vocabulary, and whether it is inside, both [N, 1]."""
    place = targets[:, None] - start
    return place.clamp(0, size - 1), (place >= 0) & (place < size)


def _logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    """Logits [n, v], float32, which the caller may change in place."""
    logits = linear(hidden, head).float()
    return logits if temperature == 1 else logits.div_(temperature)
