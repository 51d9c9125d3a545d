"""What the algorithms with PPO's clipped surrogate share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.losses import clipped, clipped_surrogate, ratio
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class ClippedAlgorithm(Algorithm):
    """PPO's clipped surrogate; subclasses give `advantages`, and may take another ratio.

    Args:
        clip_eps_low: the ratio's gradient ends below 1 - clip_eps_low where the advantage is negative.
        clip_eps_high: the ratio's gradient ends above 1 + clip_eps_high where the advantage is positive.
        dual_clip: a token of negative advantage A loses at most -dual_clip * A (3 in arXiv 1912.09729, 10 in verl's
            DAPO script); null is off.
    """

    min_rollouts_per_problem = 2

    def __init__(
        self,
        *,
        clip_eps_low: float = 0.2,
        clip_eps_high: float = 0.2,
        dual_clip: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.clip_eps_low = clip_eps_low
        self.clip_eps_high = clip_eps_high
        self.dual_clip = dual_clip
        self.require(0 < clip_eps_low < 1, "clip_eps_low", "must be in (0, 1)", clip_eps_low)
        self.require(clip_eps_high > 0, "clip_eps_high", "must be > 0", clip_eps_high)
        self.require(dual_clip is None or dual_clip > 1, "dual_clip", "must be > 1 or null", dual_clip)

    def ratio(self, logprobs: Tensor, batch: RolloutBatch) -> Tensor:
        """rho of each token, [B, T] or [B, 1]."""
        assert batch.old_logprobs is not None
        return ratio(logprobs, batch.old_logprobs)

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        rho = self.ratio(scores.logprobs, batch)
        eps = {"clip_eps_low": self.clip_eps_low, "clip_eps_high": self.clip_eps_high}
        loss = clipped_surrogate(rho, batch.advantages, dual_clip=self.dual_clip, **eps)
        return LossOutput(loss, {"policy/clip_fraction": clipped(rho.detach(), batch.advantages, **eps)})
