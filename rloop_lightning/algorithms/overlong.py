"""Overlong shaping of rollouts near or at the length limit (DAPO, arXiv 2503.14476, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rloop_lightning.types import Rollout


@dataclass(frozen=True)
class Overlong:
    """Overlong filtering and soft overlong punishment.

    Args:
        mask_truncated: leave rollouts truncated at the length limit out of the loss.
        buffer_tokens: width of the punished range below the length limit, tokens; 0 is off.
    """

    mask_truncated: bool
    buffer_tokens: int

    def in_loss(self, rollout: Rollout) -> bool:
        """Whether a rollout's tokens are loss tokens."""
        return not (self.mask_truncated and rollout.finish_reason == "length")

    def punishment(self, lengths: Tensor, max_new_tokens: int) -> Tensor:
        """The punishment to add to the rewards of rollouts of these lengths, float64, same shape."""
        if self.buffer_tokens == 0:
            return torch.zeros(lengths.shape, dtype=torch.float64)
        return soft_overlong_punishment(lengths, max_tokens=max_new_tokens, buffer_tokens=self.buffer_tokens)


def soft_overlong_punishment(lengths: Tensor, *, max_tokens: int, buffer_tokens: int) -> Tensor:
    """The punishment of a long rollout (eq. 13), float64 of the shape of `lengths`.

        clip((max_tokens - buffer_tokens - length) / buffer_tokens, -1, 0)

    Args: lengths, tokens, any shape.
    """
    return ((max_tokens - buffer_tokens - lengths.double()) / buffer_tokens).clamp(-1.0, 0.0)
