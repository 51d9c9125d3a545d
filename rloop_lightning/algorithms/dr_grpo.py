"""Dr. GRPO: GRPO without its two biases (arXiv 2503.20783)."""

from __future__ import annotations

from torch import Tensor

from rloop_lightning.algorithms.advantages import centred
from rloop_lightning.algorithms.clipped import ClippedAlgorithm


class DrGRPO(ClippedAlgorithm):
    """Advantages are not divided by a standard deviation, nor losses by a rollout's own length.

    The sum over all tokens is divided by rollouts x --engine.max_new_tokens: a long wrong rollout is punished for each
    of its tokens as much as a short one, and a problem that nearly all rollouts solve weighs no more than another.
    """

    aggregation = "constant"

    def advantages(self, rewards: Tensor) -> Tensor:
        return centred(rewards)
