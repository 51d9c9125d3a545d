"""RFT: maximum likelihood on the expert set, RLoop's consolidation (arXiv 2511.04285)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from rloop_lightning.algorithms.fine_tuning import FineTuning
from rloop_lightning.algorithms.losses import negative_log_likelihood
from rloop_lightning.system.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores

_LARGEST_EXPONENT = 20.0


class RFT(FineTuning):
    """Rejection fine-tuning: -w log p, averaged over the tokens of the expert set.

    With p* the expert distribution and pi the behaviour policy of the pool, max E_p*[log p] = max E_pi[(p*/pi) log p].
    The reward approximates the weight p*/pi. The paper states no learning rate, epochs or batch size. Those defaults
    are ours, and so are the weights for non-binary rewards.

    Args:
        weight: weight of a rollout with reward r: `binary` 1, `linear` max(r, 0), `exp` e^(r / weight_temperature). A
            negative weight would make a success less likely. If the largest exponent of an expert set is beyond +-20,
            it is moved to that bound, and all others by as much, so that the ratios of weights stay.
        weight_temperature: temperature of `exp`, in units of the reward.
        lr: peak learning rate.
        warmup_steps: training steps over which the learning rate rises linearly from 0.
        weight_decay: weight decay of matrices; norms and biases have none.
    """

    def __init__(
        self,
        *,
        weight: Literal["binary", "linear", "exp"] = "binary",
        weight_temperature: PositiveFloat = 1.0,
        lr: PositiveFloat = 1e-6,
        warmup_steps: NonNegativeInt = 0,
        weight_decay: NonNegativeFloat = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, warmup_steps=warmup_steps, weight_decay=weight_decay, **kwargs)
        self.weighting = weight
        self.weight_temperature = weight_temperature

    def weight(self, reward: float) -> float:
        match self.weighting:
            case "binary":
                return 1.0
            case "linear":
                return max(reward, 0.0)
            case "exp":
                return math.exp(reward / self.weight_temperature)

    def weights(self, rewards: Sequence[float]) -> list[float]:
        if self.weighting == "exp" and rewards:
            # The loss is divided by tokens, not by weights: a common factor counts, so usual rewards keep theirs.
            bound = _LARGEST_EXPONENT * self.weight_temperature
            surplus = max(rewards) - min(max(max(rewards), -bound), bound)
            rewards = [reward - surplus for reward in rewards]
        return super().weights(rewards)

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        return LossOutput(negative_log_likelihood(scores.logprobs, batch.advantages), metrics={})
