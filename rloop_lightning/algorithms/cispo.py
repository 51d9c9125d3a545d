"""CISPO: clipped importance sampling policy optimization (MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rloop_lightning.algorithms.advantages import group_normalised
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.importance import capped
from rloop_lightning.algorithms.losses import policy_gradient, ratio
from rloop_lightning.system.fields import PositiveFloat
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class CISPO(Algorithm):
    """-sg[min(rho, 1 + eps_high)] A lp, averaged over the loss tokens, A = (r - mean) / std.

    The importance weight is capped above only, and no gradient goes through it. So every token keeps a gradient, where
    PPO's clip takes it from tokens outside the range. `policy/clip_fraction` is the share of capped tokens.

    Args:
        clip_eps_high: the largest weight of a token is 1 + clip_eps_high. The paper gives no number; 4 caps at 5, as
            TRL advises (its `epsilon_high` is the cap itself).
    """

    def __init__(self, *, clip_eps_high: PositiveFloat = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clip_eps_high = clip_eps_high

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_normalised(rewards)

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        assert batch.old_logprobs is not None
        cap = 1 + self.clip_eps_high
        rho = ratio(scores.logprobs.detach(), batch.old_logprobs)
        weights = capped(rho, cap=cap, mode="truncate")
        loss = policy_gradient(scores.logprobs, batch.advantages, weights)
        return LossOutput(loss, {"policy/clip_fraction": rho > cap})
