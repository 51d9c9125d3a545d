"""Dr. GRPO: GRPO without its two biases (arXiv 2503.20783)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rloop_lightning.algorithms.advantages import centred
from rloop_lightning.algorithms.aggregation import Aggregation
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.losses import clipped_loss, ratio
from rloop_lightning.system.fields import AboveOne, OpenUnitInterval, PositiveFloat
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class DrGRPO(Algorithm):
    """PPO's clipped surrogate with advantages r - mean, summed and divided by rollouts x --engine.max_new_tokens.

    This removes two biases of GRPO. GRPO divides advantages by the group's standard deviation, which upweights problems
    with near-equal rewards. It also divides each rollout's loss by its length, which penalises the tokens of long wrong
    rollouts less.

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
        aggregation: Aggregation = "constant",
        **kwargs: Any,
    ) -> None:
        super().__init__(aggregation=aggregation, **kwargs)
        self.clip_eps_low = clip_eps_low
        self.clip_eps_high = clip_eps_high
        self.dual_clip = dual_clip

    def advantages(self, rewards: Tensor) -> Tensor:
        return centred(rewards)

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
