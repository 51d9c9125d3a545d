"""RFT: maximum likelihood on the expert set, RLoop's consolidation (arXiv 2511.04285)."""

from __future__ import annotations

import math
from typing import Any, Literal

from rloop_lightning.algorithms.base import Consolidation
from rloop_lightning.losses import negative_log_likelihood
from rloop_lightning.policy import TokenScores
from rloop_lightning.types import LossOutput, RolloutBatch


class RFT(Consolidation):
    """Rejection fine-tuning: the token mean of -w log p over the expert rollouts.

    With p* an expert's distribution and pi the behaviour in the pool, max E_p*[log p] = max E_pi[(p*/pi) log p]; the
    weight p*/pi is approximated by the reward. The paper states no learning rate, epochs or batch size: those are ours,
    and so are the weights for rewards that are not binary.

    Args:
        weight: what a rollout of reward r weighs: `binary` 1, `linear` r, `exp` e^r.
    """

    def __init__(
        self,
        *,
        weight: Literal["binary", "linear", "exp"] = "binary",
        lr: float = 1e-6,
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, warmup_steps=warmup_steps, weight_decay=weight_decay, **kwargs)
        self.weighting = weight

    def weight(self, reward: float) -> float:
        return {"binary": 1.0, "linear": reward, "exp": math.exp(min(reward, 20.0))}[self.weighting]

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        token_loss = negative_log_likelihood(scores.logprobs, batch.advantages)
        return LossOutput(loss=(token_loss * batch.mask).sum(), metrics={})
