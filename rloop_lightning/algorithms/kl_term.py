"""KL terms against the policy that a phase begins with, for whatever wants one.

    KLTerm       in the loss, of algorithms and consolidations     (rft.py)
    KLPenalty    in the loss or in the reward, of algorithms       (grpo.py, kl.py)

Both are mixed in before the class that they extend: `class GRPO(KLPenalty, ClippedAlgorithm)`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.losses import KLEstimator, kl
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.algorithms.reference import Reference
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores


class KLTerm(PolicyModule):
    """Adds beta times an estimate of KL(policy || reference) to the loss of each token.

    Args:
        kl_beta: weight of the KL term against the policy that the round began with; 0 is none, and keeps no copy of it.
        kl_estimator: of the KL divergence at a token, d = lp_ref - lp: `k1` -d, `k2` d^2 / 2, `k3` exp(d) - d - 1.
    """

    def __init__(self, *, kl_beta: float = 0.0, kl_estimator: KLEstimator = "k3", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kl_beta = kl_beta
        self.kl_estimator = kl_estimator
        self.kl_in_reward = False
        self.reference: Reference | None = None
        self.require(kl_beta >= 0, "kl_beta", "must be >= 0", kl_beta)

    def setup(self, stage: str) -> None:
        """The policy still is the round's initial one here, also on a resume: its checkpoint comes later."""
        super().setup(stage)
        if self.kl_beta > 0:
            self.reference = Reference(self.policy)

    def micro_batch_loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        output = super().micro_batch_loss(scores, batch)
        if self.reference is None or self.kl_in_reward:
            return output
        estimate = kl(scores.logprobs, self.reference.logprobs(batch), self.kl_estimator)
        metrics = {**output.metrics, "policy/kl_nats": estimate.detach()}
        return LossOutput(output.loss + self.kl_beta * estimate, metrics)


class KLPenalty(KLTerm, Algorithm):
    """A KL term in the loss or in the reward.

    Args:
        kl_beta: weight of the KL term against the policy that the round began with; 0 is none, and keeps no copy of it.
        kl_estimator: of the KL divergence at a token, d = lp_ref - lp: `k1` -d, `k2` d^2 / 2, `k3` exp(d) - d - 1; k1
            only in the reward, as its gradient in a loss is zero in expectation.
        kl_in: where the term stands: in the `loss` of each token, or, summed over a rollout and without a gradient, in
            its `reward`, before advantages are taken.
    """

    def __init__(
        self,
        *,
        kl_beta: float = 0.0,
        kl_estimator: KLEstimator = "k3",
        kl_in: Literal["loss", "reward"] = "loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(kl_beta=kl_beta, kl_estimator=kl_estimator, **kwargs)
        self.kl_in_reward = kl_in == "reward"
        self.require(
            self.kl_in_reward or kl_estimator != "k1",
            "kl_estimator",
            "must be k2 or k3 in the loss, where the gradient of k1 is zero in expectation (--algo.kl_in reward)",
            kl_estimator,
        )

    def prepare(self, batch: RolloutBatch) -> RolloutBatch:
        batch = super().prepare(batch)
        if self.reference is None or not self.kl_in_reward:
            return batch
        batch = self._with_old_logprobs(batch)
        assert batch.old_logprobs is not None
        assert batch.rewards is not None
        assert batch.groups is not None
        estimate = kl(batch.old_logprobs, self.reference.logprobs(batch), self.kl_estimator) * batch.completion_mask
        self.record({"policy/kl_nats": self.mean_over_ranks(estimate.sum(), batch.completion_mask.sum())})
        rewards = batch.rewards - self.kl_beta * estimate.sum(1).double()
        return replace(batch, advantages=self.group_advantages(rewards, batch.groups))
