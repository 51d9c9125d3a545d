"""Overlong shaping of rollouts near or at the length limit (DAPO, arXiv 2503.14476, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rloop_lightning.algorithms.dynamic_sampling import has_right_and_wrong
from rloop_lightning.types import Group, Rollout, SamplingParams


@dataclass(frozen=True)
class Overlong:
    """Overlong filtering and soft overlong punishment.

    Args:
        mask_truncated: leave rollouts truncated at the length limit out of the loss.
        buffer_tokens: width of the punished range below the length limit, tokens; 0 is off.
    """

    mask_truncated: bool
    buffer_tokens: int

    def conflict(self, sampling: SamplingParams) -> str:
        """Why these completions are too short for the buffer; empty if they are not."""
        if self.buffer_tokens < sampling.max_new_tokens:
            return ""
        limit = f"--engine.max_new_tokens {sampling.max_new_tokens}"
        return f"--algo.overlong_buffer_tokens {self.buffer_tokens} must be below {limit}"

    def in_loss(self, rollout: Rollout) -> bool:
        """Whether a rollout's tokens are loss tokens."""
        return not (self.mask_truncated and rollout.finish_reason == "length")

    def punishment(self, groups: Sequence[Group], max_new_tokens: int) -> Tensor:
        """The punishments [B] to add to the groups' rewards, float64, group by group.

        They are 0 in a group that dynamic sampling would drop, and in one of equal rewards: divided by the group's
        standard deviation, the punishment alone would train there at full strength.
        """
        lengths = torch.tensor([rollout.length for group in groups for rollout in group.rollouts])
        if self.buffer_tokens == 0:
            return torch.zeros(lengths.shape, dtype=torch.float64)
        task_decides = torch.tensor([_task_decides(group) for group in groups for _ in group.rollouts])
        punishment = soft_overlong_punishment(lengths, max_tokens=max_new_tokens, buffer_tokens=self.buffer_tokens)
        return punishment.masked_fill(~task_decides, 0.0)


def _task_decides(group: Group) -> bool:
    """Whether the task's rewards tell right from wrong in this group, before any shaping."""
    return has_right_and_wrong(group) and len({rollout.reward for rollout in group.rollouts}) > 1


def soft_overlong_punishment(lengths: Tensor, *, max_tokens: int, buffer_tokens: int) -> Tensor:
    """The punishment of a long rollout (eq. 13), float64 of the shape of `lengths`.

        clip((max_tokens - buffer_tokens - length) / buffer_tokens, -1, 0)

    Args: lengths, tokens, any shape.
    """
    return ((max_tokens - buffer_tokens - lengths.double()) / buffer_tokens).clamp(-1.0, 0.0)
