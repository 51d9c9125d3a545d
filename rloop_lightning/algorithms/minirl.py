"""MiniRL: REINFORCE with an importance weight and a decoupled clip mask (arXiv 2512.01374)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rloop_lightning.algorithms.advantages import centred
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.importance import capped, weight_metrics
from rloop_lightning.algorithms.losses import clip_metrics, policy_gradient, ratio
from rloop_lightning.system.fields import AtLeastOne, OpenUnitInterval, PositiveFloat
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class MiniRL(Algorithm):
    """-sum_t M_t sg[min(exp(lp - lp_mu), cap)] A lp, A = r - mean, averaged over rollouts.

    The weight uses the *engine's* logprobs lp_mu. The clip mask M uses the *trainer's* old logprobs.

    Args:
        importance_weight: weight each token by pi / pi(engine); `false` is the paper's ablation.
        importance_cap: largest weight of a token.
        clip: drop tokens whose ratio is outside the clip range.
        clip_eps_low: lower clip: drop a token with negative advantage once its ratio is below 1 - clip_eps_low.
        clip_eps_high: upper clip: drop a token with positive advantage once its ratio exceeds 1 + clip_eps_high.
        length_normalised: divide a rollout's sum by its length; an ablation of the paper, where it performs worse.
    """

    def __init__(
        self,
        *,
        importance_weight: bool = True,
        importance_cap: AtLeastOne = 5.0,
        clip: bool = True,
        clip_eps_low: OpenUnitInterval = 0.2,
        clip_eps_high: PositiveFloat = 0.27,
        length_normalised: bool = False,
        **kwargs: Any,
    ) -> None:
        aggregation = "sequence-mean" if length_normalised else "sequence-sum"
        super().__init__(aggregation=aggregation, importance_cap=importance_cap, **kwargs)
        self.importance_weight, self.clip = importance_weight, clip
        self.clip_eps = {"clip_eps_low": clip_eps_low, "clip_eps_high": clip_eps_high}
        mode, twice = self.importance.mode, "weights tokens twice with --algo.importance_weight true; turn one off"
        self.require(not importance_weight or self.importance.is_off, "importance_correction", twice, mode)
        level, by_token = self.importance.level, "must be token with --algo.importance_weight true, which is by token"
        self.require(not importance_weight or level == "token", "importance_level", by_token, level)

    def expect_lag(self, staleness: int) -> None:
        """The importance weight corrects for older policies, too."""
        if not self.importance_weight:
            super().expect_lag(staleness)

    def advantages(self, rewards: Tensor) -> Tensor:
        return centred(rewards)

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        assert batch.old_logprobs is not None
        logprobs = scores.logprobs.detach()
        ratios = ratio(logprobs, batch.sampling_logprobs)
        ratios = ratios if self.importance_weight else torch.ones_like(ratios)
        weights = capped(ratios, cap=self.importance.cap, mode="truncate")
        marked = clip_metrics(ratio(logprobs, batch.old_logprobs), batch.advantages, **self.clip_eps)
        dropped = {name: mask & self.clip for name, mask in marked.items()}
        weights_kept = weights.masked_fill(dropped["policy/clip_fraction"], 0.0)
        loss = policy_gradient(scores.logprobs, batch.advantages, weights_kept)
        return LossOutput(loss, {**weight_metrics(ratios, weights, cap=self.importance.cap), **dropped})
