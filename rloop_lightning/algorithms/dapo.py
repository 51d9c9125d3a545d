"""DAPO: decoupled clip and dynamic sampling policy optimization (arXiv 2503.14476)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rloop_lightning.algorithms.advantages import group_normalised
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.losses import clipped_loss, ratio
from rloop_lightning.system.fields import AboveOne, OpenUnitInterval, PositiveFloat, PositiveInt
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class DAPO(Algorithm):
    """PPO's clipped surrogate with clip-higher, averaged over the loss tokens, with dynamic sampling and no KL term.

    Defaults are the paper's, with one exception: `dual_clip` is verl's. A rollout step of 512 problems x 16 rollouts
    has mini-batches of 512 rollouts.

    Args:
        clip_eps_low: lower clip: a token with negative advantage gets no gradient once its ratio is below
            1 - clip_eps_low.
        clip_eps_high: upper clip: a token with positive advantage gets no gradient once its ratio exceeds
            1 + clip_eps_high.
        dual_clip: upper bound -dual_clip * A of the loss of a token with negative advantage A; null is off. The clip
            range does not bound it: at a log-ratio of 19, a token has 1.8e8 times the gradient of an on-policy one. 10
            as in verl's DAPO script (3 in arXiv 1912.09729): only ratios above it lose their gradient.
        dynamic_sampling: train only on groups with both right and wrong rollouts; sample until there are enough of
            them.
        updates_per_step: optimizer steps per pass over a rollout step's rollouts, each on an equal share of them.
    """

    def __init__(
        self,
        *,
        clip_eps_low: OpenUnitInterval = 0.2,
        clip_eps_high: PositiveFloat = 0.28,
        dual_clip: AboveOne | None = 10.0,
        dynamic_sampling: bool = True,
        updates_per_step: PositiveInt = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(dynamic_sampling=dynamic_sampling, updates_per_step=updates_per_step, **kwargs)
        self.clip_eps_low = clip_eps_low
        self.clip_eps_high = clip_eps_high
        self.dual_clip = dual_clip

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_normalised(rewards)

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        assert batch.old_logprobs is not None
        rho = ratio(scores.logprobs, batch.old_logprobs)
        return clipped_loss(
            rho,
            batch.advantages,
            clip_eps_low=self.clip_eps_low,
            clip_eps_high=self.clip_eps_high,
            dual_clip=self.dual_clip,
        )
