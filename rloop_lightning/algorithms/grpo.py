"""GRPO: group relative policy optimization (arXiv 2402.03300)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rloop_lightning.algorithms.advantages import group_normalised
from rloop_lightning.algorithms.clipped import ClippedAlgorithm
from rloop_lightning.algorithms.kl_term import KLPenalty


class GRPO(KLPenalty, ClippedAlgorithm):
    """Advantages normalised inside a group; the loss is the mean over a rollout's tokens, then over rollouts.

    Defaults are the paper's but for its KL term of 0.04 with k3 in the loss, which is off as in most later work; the
    paper's weight decay is not known.

    Args:
        kl_beta: weight of the KL term against the policy that the round began with; 0 is none, and keeps no copy of it.
        clip_eps_high: the ratio's gradient ends above 1 + clip_eps_high where the advantage is positive.
    """

    aggregation = "sequence-mean"

    def __init__(self, *, kl_beta: float = 0.0, clip_eps_high: float = 0.2, **kwargs: Any) -> None:
        super().__init__(kl_beta=kl_beta, clip_eps_high=clip_eps_high, **kwargs)

    def advantages(self, rewards: Tensor) -> Tensor:
        return group_normalised(rewards)
