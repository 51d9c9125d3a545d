"""GSPO: group sequence policy optimization (arXiv 2507.18071)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rloop_lightning.algorithms.advantages import group_normalised
from rloop_lightning.algorithms.clipped import ClippedAlgorithm
from rloop_lightning.algorithms.losses import sequence_ratio
from rloop_lightning.types import RolloutBatch


class GSPO(ClippedAlgorithm):
    """One ratio for a whole rollout, the geometric mean of its tokens', clipped as a whole; mean over rollouts.

    Such ratios differ from 1 by thousandths, and so does the paper's clip. Its rollout steps are cut into four
    mini-batches.

    Args:
        clip_eps_low: the ratio's gradient ends below 1 - clip_eps_low where the advantage is negative.
        clip_eps_high: the ratio's gradient ends above 1 + clip_eps_high where the advantage is positive.
        updates_per_step: optimizer steps on the rollouts of one rollout step, each on an equal share of them.
    """

    aggregation = "sequence-mean"

    def __init__(
        self,
        *,
        clip_eps_low: float = 3e-4,
        clip_eps_high: float = 4e-4,
        updates_per_step: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            clip_eps_low=clip_eps_low, clip_eps_high=clip_eps_high, updates_per_step=updates_per_step, **kwargs
        )

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_normalised(rewards)

    def ratio(self, logprobs: Tensor, batch: RolloutBatch) -> Tensor:
        assert batch.old_logprobs is not None
        return sequence_ratio(logprobs, batch.old_logprobs, batch.loss_mask)
