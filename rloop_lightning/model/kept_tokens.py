"""Logprobs and entropies under truncated sampling: the softmax over the tokens that top-k and top-p kept.

    kept = KeptTokens.of(batch)                                      # None if the whole vocabulary was kept
    logits = gather_logits(hidden, head, kept, temperature)          # [K]
    logprobs, entropies = kept.scores(logits, targets)               # [N]

The engine samples from a softmax over the kept tokens. A softmax over the whole vocabulary would give each token a
logprob lower by minus the logarithm of the kept probability, and bias each ratio against the engine. So the trainer
replays the engine's choice of tokens ("keep sampling mask", arXiv 2512.02556, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from rloop_lightning.model.token_scores import logits_per_piece
from rloop_lightning.types import RolloutBatch


@dataclass(frozen=True)
class KeptTokens:
    """The kept tokens of N completion tokens: K pairs of a completion token and a token id.

    Args:
        token_ids: [K] int64, completion token by completion token.
        counts: [N] int64, pairs of each completion token, at least 1.
    """

    token_ids: Tensor
    counts: Tensor

    @classmethod
    def of(cls, batch: RolloutBatch) -> Self | None:
        """Those of a batch's completion tokens, row by row; None if it has none."""
        if batch.kept_tokens is None or batch.kept_counts is None:
            return None
        places = torch.arange(batch.kept_tokens.shape[1], device=batch.kept_tokens.device)
        inside = places < batch.kept_counts.sum(1, keepdim=True)
        return cls(batch.kept_tokens[inside].long(), batch.kept_counts[batch.completion_mask].long())

    @property
    def places(self) -> Tensor:
        """The completion token of each pair, [K] int64."""
        places = torch.arange(len(self.counts), device=self.counts.device)
        return places.repeat_interleave(self.counts, output_size=len(self.token_ids))

    def split(self, size: int) -> Iterator[KeptTokens]:
        """Those of `size` completion tokens at a time."""
        counts = self.counts.split(size)
        for of_part, part in zip(self.token_ids.split([int(part.sum()) for part in counts]), counts, strict=True):
            yield KeptTokens(of_part, part)

    def scores(self, logits: Tensor, targets: Tensor, *, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """Logprobs of the targets and entropies of their distributions; nats, both [N].

        Args:
            logits: [K].
            targets: [N] int64, each among its kept tokens.
            entropy_gradient: whether entropies have gradients, as logprobs do.
        """
        places = self.places
        with torch.no_grad():
            largest = self._reduce("max", logits)
        shifted = logits - largest[places]
        weights = shifted.exp()
        total = self._reduce("sum", weights)
        is_target = self.token_ids == targets[places]
        logprobs = self._reduce("sum", shifted.masked_fill(~is_target, 0.0)) - total.log()
        entropies = total.log() - self._reduce("sum", weights * shifted) / total
        return logprobs, entropies if entropy_gradient else entropies.detach()

    def _reduce(self, how: str, values: Tensor) -> Tensor:
        """The sum or maximum of each completion token's pairs, [K] to [N]."""
        return torch.segment_reduce(values, how, lengths=self.counts, unsafe=True)


def gather_logits(hidden: Tensor, head: Tensor, kept: KeptTokens, temperature: float) -> Tensor:
    """The logits of the kept tokens, float32 [K], with gradients. Logits [N, V] are never materialised as a whole.

    Args: hidden [N, H]; head [V, H], whose dtype the products use; temperature divides the logits.
    """
    return _GatheredLogits.apply(hidden, head, kept.places, kept.token_ids, temperature)


class _GatheredLogits(torch.autograd.Function):
    """l = hidden[places] . head[token_ids] / temperature, by products with pieces of the head.

    The products are those of the engine and of `token_scores`, so their rounding is too.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, places: Tensor, token_ids: Tensor, temperature: float
    ) -> Tensor:
        ctx.temperature = temperature
        ctx.save_for_backward(hidden, head, places, token_ids)
        states = hidden.to(head.dtype)
        gathered = torch.empty(len(token_ids), device=hidden.device)
        for start, part, pairs in _pieces(head, len(hidden), token_ids):
            logits = linear(states, part)
            gathered[pairs] = logits[places[pairs], token_ids[pairs] - start].float()
        return gathered if temperature == 1 else gathered.div_(temperature)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, head, places, token_ids = ctx.saved_tensors
        gradient = gradient / ctx.temperature
        states = hidden.to(head.dtype)
        grad_hidden = torch.zeros(hidden.shape, dtype=gradient.dtype, device=hidden.device)
        grad_head = torch.zeros_like(head)
        with torch.autocast(head.device.type, enabled=False):
            for start, part, pairs in _pieces(head, len(hidden), token_ids):
                grad_logits = torch.zeros(len(hidden), len(part), dtype=head.dtype, device=head.device)
                grad_logits[places[pairs], token_ids[pairs] - start] = gradient[pairs].to(head.dtype)
                grad_hidden += grad_logits @ part
                grad_head[start : start + len(part)] = grad_logits.t() @ states
        return grad_hidden.to(hidden.dtype), grad_head, None, None, None


def _pieces(head: Tensor, rows: int, token_ids: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Pieces [v, H] of a head [V, H] with kept tokens: the start in the vocabulary, the piece, the pairs inside it."""
    size = max(1, logits_per_piece(head.device) // max(1, rows))
    order = token_ids.argsort()
    starts = torch.arange(0, len(head) + size, size, device=head.device)
    bounds = torch.searchsorted(token_ids[order], starts).tolist()
    for number, (first, end) in enumerate(pairwise(bounds)):
        if end > first:
            yield number * size, head[number * size : (number + 1) * size], order[first:end]
