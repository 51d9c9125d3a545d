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

from rloop_lightning.model.compiled import compiled_on_gpu

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
            place, inside = _places(targets, start, len(part))
            chosen, largest, total, weighted = _with_piece(
                linear(states, part), temperature, place, inside, chosen, largest, total, weighted
            )
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
        of_entropies = None if grad_entropies is None else grad_entropies / ctx.temperature
        states = hidden.to(head.dtype)
        grad_hidden = torch.zeros(hidden.shape, dtype=normalisers.dtype, device=hidden.device)
        grad_head = torch.empty_like(head)
        with torch.autocast(head.device.type, enabled=False):  # recomputes exactly the logits of the forward pass
            for start, part in _pieces(head, len(hidden)):
                place, inside = _places(targets, start, len(part))
                grad_logits = _grad_logits(
                    linear(states, part),
                    ctx.temperature,
                    place,
                    inside,
                    normalisers,
                    entropies,
                    of_logprobs,
                    of_entropies,
                )
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


@compiled_on_gpu
def _with_piece(
    logits: Tensor,
    temperature: float,
    place: Tensor,
    inside: Tensor,
    chosen: Tensor,
    largest: Tensor,
    total: Tensor,
    weighted: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The running values [N] over the vocabulary with one more piece of logits l [N, v], before the temperature.

    They are l(target), the largest l, total = sum exp(l - largest), weighted = sum exp(l - largest) (l - largest).
    """
    logits = _scaled(logits, temperature)
    chosen = chosen + logits.gather(-1, place).masked_fill(~inside, 0.0)[:, 0]
    before, largest = largest, largest.maximum(logits.amax(-1))
    shrunk = (before - largest).exp()
    weighted = shrunk * (weighted + total * (before - largest))
    logits = logits.sub_(largest[:, None])
    weights = logits.exp()
    return chosen, largest, shrunk * total + weights.sum(-1), weighted + torch.linalg.vecdot(weights, logits)


@compiled_on_gpu
def _grad_logits(
    logits: Tensor,
    temperature: float,
    place: Tensor,
    inside: Tensor,
    normalisers: Tensor,
    entropies: Tensor,
    of_logprobs: Tensor,
    of_entropies: Tensor | None,
) -> Tensor:
    """The gradient of a piece of logits [N, v] before the temperature, in their dtype.

    Args: normalisers, entropies and the gradients of logprobs and entropies, divided by the temperature, are [N].
    """
    logprobs = _scaled(logits, temperature).sub_(normalisers[:, None])
    slopes = -of_logprobs[:, None]
    if of_entropies is not None:
        slopes = slopes - of_entropies[:, None] * (logprobs + entropies[:, None])
    grad = logprobs.exp_().mul_(slopes)
    return _with_targets(grad, place, of_logprobs[:, None] * inside).to(logits.dtype)


def _with_targets(grad: Tensor, place: Tensor, of_targets: Tensor) -> Tensor:
    """`grad` [N, v] with `of_targets` [N, 1] added at the index `place` [N, 1]."""
    if not grad.is_cuda:
        return grad.scatter_add_(-1, place, of_targets)
    # A comparison fuses with what surrounds it; a scatter needs the whole of `grad` in memory.
    return grad + (torch.arange(grad.shape[-1], device=grad.device) == place) * of_targets


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Logits by temperature, float32. A new tensor unless they are float32 and the temperature is 1."""
    logits = logits.float()
    return logits if temperature == 1 else logits / temperature
