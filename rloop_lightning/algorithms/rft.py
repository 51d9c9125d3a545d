"""RFT: maximum likelihood on the expert set, RLoop's consolidation (arXiv 2511.04285)."""

from __future__ import annotations

import math
from typing import Any, Literal

from rloop_lightning.algorithms.fine_tuning import FineTuning
from rloop_lightning.algorithms.losses import negative_log_likelihood
from rloop_lightning.system.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class RFT(FineTuning):
    """Rejection fine-tuning: -w log p, averaged over the tokens of the expert set.

    With p* the expert distribution and pi the behaviour policy of the pool, max E_p*[log p] = max E_pi[(p*/pi) log p].
    The reward approximates the weight p*/pi. The paper states no learning rate, epochs or batch size. Those defaults
    are ours, and so are the weights for non-binary rewards.

    Args:
        weight: weight of a rollout with reward r: `binary` 1, `linear` max(r, 0), `exp` e^(r / weight_temperature). A
            negative weight would make a success less likely.
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
        exponent = min(reward / self.weight_temperature, 20.0)
        return {"binary": 1.0, "linear": max(reward, 0.0), "exp": math.exp(exponent)}[self.weighting]

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        return LossOutput(negative_log_likelihood(scores.logprobs, batch.advantages), metrics={})
