"""What all consolidations share: an optimizer step for each mini-batch of the expert set (rft.py, ...)."""

from __future__ import annotations

from typing import Any, Literal

from rloop_lightning.algorithms.kl_term import KLTerm
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.system.fields import NonNegativeFloat, PositiveInt
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class Consolidation(PolicyModule):
    """Fine-tunes the policy that a round began with on the round's expert set. Subclasses give `loss`.

    Args:
        epochs: passes over the expert set.
        rollouts_per_update: rollouts in the mini-batch of an optimizer step.
        kl_beta: weight of a KL term against the round's initial policy, at the experts' tokens; 0 is none.
        kl_estimator: of the KL divergence at a token, d = lp_ref - lp: `k2` d^2 / 2, `k3` exp(d) - d - 1.
        aggregation: from token losses to the loss of a mini-batch: `token-mean` over its tokens, `sequence-mean` over a
            rollout's tokens, then over rollouts, `sequence-sum` summed over a rollout's tokens, then the mean over
            rollouts.
    """

    flag = "--consolidate"

    def __init__(
        self,
        *,
        epochs: PositiveInt = 2,
        rollouts_per_update: PositiveInt = 64,
        kl_beta: NonNegativeFloat = 0.0,
        kl_estimator: Literal["k2", "k3"] = "k3",
        aggregation: Literal["token-mean", "sequence-mean", "sequence-sum"] = "token-mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(aggregation=aggregation, **kwargs)
        self.epochs = epochs
        self.rollouts_per_update = rollouts_per_update
        self.kl = KLTerm(beta=kl_beta, estimator=kl_estimator)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.kl.begin(self.policy)

    def weight(self, reward: float) -> float:
        """What an expert rollout of this reward weighs in the loss."""
        return 1.0

    def micro_batch_loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        return self.kl.add_to(self.loss(scores, batch), scores, batch)

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        """One optimizer step."""
        self._record_updates([self.update(batch)])
        self._step_schedule()
