"""RLOO: REINFORCE with a leave-one-out baseline (arXiv 2402.14740), as `rloop-fit --algo rloo`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.losses import policy_gradient, ratio
from rloop_lightning.system.fields import NonNegativeFloat
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores

_LARGEST_RATIO = 10.0


class RLOO(Algorithm):
    """-sum_t sg[rho_t] A logp_t, summed over a rollout's tokens, then the mean over rollouts; no clip.

    A rollout's baseline is the mean reward of the others in its group, which it had no part in, so that the gradient is
    unbiased. The ratio rho is 1 in the first update of a rollout step, and corrects the later ones. It is capped at 10,
    or one token could outweigh all others.

    Args:
        kl_beta: weight of the log-ratio to the policy that the round began with, which is taken off a rollout's reward;
            0 is none, and keeps no copy of it. Off by default, unlike in the paper, whose rewards come from a model.
    """

    def __init__(self, *, kl_beta: NonNegativeFloat = 0.0, **kwargs: Any) -> None:
        super().__init__(aggregation="sequence-sum", kl_beta=kl_beta, kl_estimator="k1", kl_in="reward", **kwargs)

    def advantages(self, rewards: Tensor) -> Tensor:
        return leave_one_out(rewards)

    def shaping_advantages(self, shaping: Tensor) -> Tensor:
        return leave_one_out(shaping)

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        assert batch.old_logprobs is not None
        rho = ratio(scores.logprobs.detach(), batch.old_logprobs).clamp(max=_LARGEST_RATIO)
        return LossOutput(policy_gradient(scores.logprobs, batch.advantages, rho), {"policy/ratio": rho})


def leave_one_out(rewards: Tensor) -> Tensor:
    """A_i = r_i - the mean of the others, as G / (G - 1) of r_i - mean(r) (section 3.3 of the paper).

    Args: rewards [P, G] with G >= 2. Returns [P, G], float32; a row whose rewards are all equal gets exactly 0.
    """
    rewards = rewards.double()
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    equal = torch.amax(rewards, dim=1, keepdim=True) == torch.amin(rewards, dim=1, keepdim=True)
    return (rewards - others).masked_fill(equal, 0.0).float()
