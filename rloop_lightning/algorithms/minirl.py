"""MiniRL: REINFORCE with an importance weight and a decoupled clip mask (arXiv 2512.01374)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rloop_lightning.algorithms.advantages import centred
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.losses import clipped, policy_gradient, ratio
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class MiniRL(Algorithm):
    """-sum_t M_t sg[min(exp(lp - lp_mu), cap)] A lp, with centred advantages; the mean over rollouts of their sums.

    The weight is taken against the *engine's* logprobs lp_mu, and corrects both for how they differ from the trainer's
    and for updates since. The mask M drops tokens whose ratio to the *trainer's* old logprobs has left the clip range
    on the advantage's side. Defaults are the paper's. For mixture-of-experts policies with several updates a rollout
    step it wants --policy.routing_replay, too.

    Args:
        importance_weight: weigh tokens against the engine's logprobs; the paper's ablation without is `false`.
        importance_cap: largest weight of a token.
        clip: drop tokens whose ratio left the clip range.
        clip_eps_low: tokens of negative advantage are dropped below a ratio of 1 - clip_eps_low.
        clip_eps_high: tokens of positive advantage are dropped above a ratio of 1 + clip_eps_high.
        length_normalised: divide a rollout's sum by its length; the paper's ablation, which hurt.
    """

    min_rollouts_per_problem = 2

    def __init__(
        self,
        *,
        importance_weight: bool = True,
        importance_cap: float = 5.0,
        clip: bool = True,
        clip_eps_low: float = 0.2,
        clip_eps_high: float = 0.27,
        length_normalised: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(importance_cap=importance_cap, **kwargs)
        self.importance_weight = importance_weight
        self.clip = clip
        self.clip_eps = {"clip_eps_low": clip_eps_low, "clip_eps_high": clip_eps_high}
        self.aggregation = "sequence-mean" if length_normalised else "sequence-sum"
        self.require(0 < clip_eps_low < 1, "clip_eps_low", "must be in (0, 1)", clip_eps_low)
        self.require(clip_eps_high > 0, "clip_eps_high", "must be > 0", clip_eps_high)
        self.require(
            self.importance_correction == "none" or not importance_weight,
            "importance_correction",
            "would weigh twice what --algo.importance_weight weighs; set one of them to none or false",
            self.importance_correction,
        )

    def advantages(self, rewards: Tensor) -> Tensor:
        return centred(rewards)

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        assert batch.old_logprobs is not None
        logprobs = scores.logprobs.detach()
        weights = torch.ones_like(logprobs)
        metrics = {}
        if self.importance_weight:
            weights = ratio(logprobs, batch.sampling_logprobs).clamp(max=self.importance_cap)
            metrics["policy/importance_weight"] = weights
        if self.clip:
            dropped = clipped(ratio(logprobs, batch.old_logprobs), batch.advantages, **self.clip_eps)
            weights = weights.masked_fill(dropped, 0.0)
            metrics["policy/clip_fraction"] = dropped
        return LossOutput(policy_gradient(scores.logprobs, batch.advantages, weights), metrics)
