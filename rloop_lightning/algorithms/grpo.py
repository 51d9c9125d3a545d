"""GRPO: group relative policy optimization (arXiv 2402.03300)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rloop_lightning.algorithms.advantages import group_normalised
from rloop_lightning.algorithms.aggregation import Aggregation
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.losses import clipped_loss, ratio
from rloop_lightning.system.fields import AboveOne, OpenUnitInterval, PositiveFloat
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class GRPO(Algorithm):
    """PPO's clipped surrogate, averaged over each rollout's tokens, then over rollouts.

    Defaults are the paper's, with these exceptions: its KL term (0.04, k3 in the loss) is off, as in most later work;
    `dual_clip` is verl's; learning rate, warm-up, weight decay and gradient clipping are those of all algorithms.

    Args:
        clip_eps_low: lower clip: a token with negative advantage gets no gradient once its ratio is below
            1 - clip_eps_low.
        clip_eps_high: upper clip: a token with positive advantage gets no gradient once its ratio exceeds
            1 + clip_eps_high.
        dual_clip: upper bound -dual_clip * A of the loss of a token with negative advantage A; null is off. The clip
            range does not bound it: at a log-ratio of 19, a token has 1.8e8 times the gradient of an on-policy one. 10
            as in verl's DAPO script (3 in arXiv 1912.09729): only ratios above it lose their gradient.
        aggregation: how token losses become the loss of a mini-batch, see aggregation.py.
    """

    def __init__(
        self,
        *,
        clip_eps_low: OpenUnitInterval = 0.2,
        clip_eps_high: PositiveFloat = 0.2,
        dual_clip: AboveOne | None = 10.0,
        aggregation: Aggregation = "sequence-mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(aggregation=aggregation, **kwargs)
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
