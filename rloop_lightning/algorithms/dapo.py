"""DAPO: decoupled clip and dynamic sampling policy optimization (arXiv 2503.14476)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rloop_lightning.algorithms.advantages import group_normalised
from rloop_lightning.algorithms.clipped import ClippedAlgorithm
from rloop_lightning.types import Group, Rollout, SamplingParams


class DAPO(ClippedAlgorithm):
    """Clip-higher, token mean over the mini-batch, dynamic sampling, overlong shaping; no KL term.

    Defaults are the paper's, for its rollout steps of 512 problems x 16 rollouts: mini-batches of 512 rollouts.

    Args:
        clip_eps_high: the ratio's gradient ends above 1 + clip_eps_high where the advantage is positive.
        dynamic_sampling: train only on problems that some but not all rollouts solved, and sample on until enough
            such groups are there.
        max_generation_batches: problems that a rollout step may sample for that before it gives up, in multiples of
            --loop.problems_per_step.
        mask_truncated: overlong filtering: leave rollouts cut at the length limit out of the loss.
        overlong_buffer_tokens: soft overlong punishment: the reward falls linearly to -1 over this many tokens before
            the length limit; 0 is off.
    """

    def __init__(
        self,
        *,
        clip_eps_high: float = 0.28,
        dynamic_sampling: bool = True,
        max_generation_batches: int = 10,
        mask_truncated: bool = False,
        overlong_buffer_tokens: int = 0,
        updates_per_step: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(clip_eps_high=clip_eps_high, updates_per_step=updates_per_step, **kwargs)
        self.dynamic_sampling = dynamic_sampling
        self.max_generation_batches = max_generation_batches if dynamic_sampling else 1
        self.mask_truncated = mask_truncated
        self.overlong_buffer_tokens = overlong_buffer_tokens
        self.require(
            max_generation_batches >= 1, "max_generation_batches", "must be at least 1", max_generation_batches
        )
        self.require(
            overlong_buffer_tokens >= 0, "overlong_buffer_tokens", "must be >= 0 tokens", overlong_buffer_tokens
        )

    def keep_group(self, group: Group) -> bool:
        """Dynamic sampling looks at correctness: shaped rewards differ inside a group that is all wrong, too."""
        return not self.dynamic_sampling or 0 < group.success_count < len(group.rollouts)

    def validate(self, sampling: SamplingParams) -> list[str]:
        if self.overlong_buffer_tokens < sampling.max_new_tokens:
            return []
        limit = f"--engine.max_new_tokens {sampling.max_new_tokens}"
        return [f"--algo.overlong_buffer_tokens {self.overlong_buffer_tokens} must be below {limit}"]

    def rewards(self, groups: Sequence[Group], sampling: SamplingParams) -> Tensor:
        rewards = super().rewards(groups, sampling)
        if not self.overlong_buffer_tokens:
            return rewards
        lengths = torch.tensor([rollout.length for group in groups for rollout in group.rollouts])
        return rewards + soft_overlong_punishment(
            lengths, max_tokens=sampling.max_new_tokens, buffer_tokens=self.overlong_buffer_tokens
        )

    def in_loss(self, rollout: Rollout) -> bool:
        return not (self.mask_truncated and rollout.finish_reason == "length")

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_normalised(rewards)


def soft_overlong_punishment(lengths: Tensor, *, max_tokens: int, buffer_tokens: int) -> Tensor:
    """What is added to the reward of a long rollout (arXiv 2503.14476, eq. 13), float64 of the shape of `lengths`.

    0 up to max_tokens - buffer_tokens, then falling linearly to -1 at max_tokens.

    Args: lengths, tokens, any shape.
    """
    return ((max_tokens - buffer_tokens - lengths.double()) / buffer_tokens).clamp(-1.0, 0.0)
