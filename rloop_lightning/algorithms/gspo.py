"""GSPO: group sequence policy optimization (arXiv 2507.18071)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rloop_lightning.algorithms.advantages import group_normalised
from rloop_lightning.algorithms.aggregation import Aggregation
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.losses import clipped_loss, sequence_ratio
from rloop_lightning.system.fields import AboveOne, OpenUnitInterval, PositiveFloat, PositiveInt
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class GSPO(Algorithm):
    """PPO's clipped surrogate with one ratio per rollout, the geometric mean of its tokens' ratios.

    Sequence ratios differ from 1 by thousandths, hence the paper's narrow clip range. The paper splits a rollout step
    into four mini-batches.

    Args:
        clip_eps_low: lower clip: a rollout with negative advantage gets no gradient once its ratio is below
            1 - clip_eps_low.
        clip_eps_high: upper clip: a rollout with positive advantage gets no gradient once its ratio exceeds
            1 + clip_eps_high.
        dual_clip: upper bound -dual_clip * A of the loss of a rollout with negative advantage A; null is off. The clip
            range does not bound it: at a log-ratio of 19, a rollout has 1.8e8 times the gradient of an on-policy one.
            10 as in verl's DAPO script (3 in arXiv 1912.09729): only ratios above it lose their gradient.
        aggregation: how token losses become the loss of a mini-batch, see aggregation.py.
        updates_per_step: optimizer steps per pass over a rollout step's rollouts, each on an equal share of them.
    """

    def __init__(
        self,
        *,
        clip_eps_low: OpenUnitInterval = 3e-4,
        clip_eps_high: PositiveFloat = 4e-4,
        dual_clip: AboveOne | None = 10.0,
        aggregation: Aggregation = "sequence-mean",
        updates_per_step: PositiveInt = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(aggregation=aggregation, updates_per_step=updates_per_step, **kwargs)
        self.clip_eps_low = clip_eps_low
        self.clip_eps_high = clip_eps_high
        self.dual_clip = dual_clip

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_normalised(rewards)

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        assert batch.old_logprobs is not None
        rho = sequence_ratio(scores.logprobs, batch.old_logprobs, batch.loss_mask)
        return clipped_loss(
            rho,
            batch.advantages,
            clip_eps_low=self.clip_eps_low,
            clip_eps_high=self.clip_eps_high,
            dual_clip=self.dual_clip,
        )
