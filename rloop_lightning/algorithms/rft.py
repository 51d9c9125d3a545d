"""RFT: maximum likelihood on the expert set, RLoop's consolidation (arXiv 2511.04285)."""

from __future__ import annotations

import math
from typing import Any, Literal

from rloop_lightning.algorithms.base import Consolidation
from rloop_lightning.algorithms.kl_term import KLTerm
from rloop_lightning.algorithms.losses import negative_log_likelihood
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class RFT(KLTerm, Consolidation):
    """Rejection fine-tuning: the token mean of -w log p over the expert rollouts.

    With p* an expert's distribution and pi the behaviour in the pool, max E_p*[log p] = max E_pi[(p*/pi) log p]; the
    weight p*/pi is approximated by the reward. The paper states no learning rate, epochs or batch size: those are ours,
    and so are the weights for rewards that are not binary.

    Args:
        weight: what a rollout of reward r weighs: `binary` 1, `linear` r, `exp` e^(r / weight_temperature).
        weight_temperature: of `exp`, in units of the reward.
        kl_beta: weight of a KL term against the round's initial policy, at the experts' tokens; 0 is none.
        kl_estimator: of the KL divergence at a token, d = lp_ref - lp: `k2` d^2 / 2, `k3` exp(d) - d - 1.
    """

    def __init__(
        self,
        *,
        weight: Literal["binary", "linear", "exp"] = "binary",
        weight_temperature: float = 1.0,
        kl_beta: float = 0.0,
        kl_estimator: Literal["k2", "k3"] = "k3",
        lr: float = 1e-6,
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            kl_beta=kl_beta,
            kl_estimator=kl_estimator,
            lr=lr,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            **kwargs,
        )
        self.weighting = weight
        self.weight_temperature = weight_temperature
        self.require(weight_temperature > 0, "weight_temperature", "must be > 0", weight_temperature)

    def weight(self, reward: float) -> float:
        exponent = min(reward / self.weight_temperature, 20.0)
        return {"binary": 1.0, "linear": reward, "exp": math.exp(exponent)}[self.weighting]

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        return LossOutput(negative_log_likelihood(scores.logprobs, batch.advantages), metrics={})
