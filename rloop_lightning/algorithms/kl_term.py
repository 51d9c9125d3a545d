"""A KL term: holds the policy near the one that the round began with, in the loss or in the reward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from rloop_lightning.algorithms.losses import MAX_LOG_RATIO
from rloop_lightning.algorithms.reference import Reference
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores

KLEstimator = Literal["k1", "k2", "k3"]

# The controller's answer to a KL divergence that is far off: a fifth too much, however far (arXiv 1909.08593, eq. 5).
_LARGEST_ERROR = 0.2


class KLTerm(nn.Module):
    """beta times an estimate of KL(policy || reference), per token.

    It is part of the module that trains, so that checkpoints hold the reference and beta. With beta 0 it holds
    neither.

    Args:
        beta: weight of the term; the first weight, if there is a target.
        estimator: of the KL divergence at a token, see `kl`.
        place: in the `loss` of each token, or, summed over a rollout and without a gradient, in its `reward`.
        target: KL divergence to hold, nats per token; None keeps beta.
        adaptation: rate at which beta follows the target, see `adapted`.
        reset_steps: rollout steps between resets of the reference (ProRL, arXiv 2505.24864); 0 never resets it.
    """

    beta: Tensor
    reference: Reference | None

    def __init__(
        self,
        *,
        beta: float,
        estimator: KLEstimator,
        place: Literal["loss", "reward"] = "loss",
        target: float | None = None,
        adaptation: float = 0.1,
        reset_steps: int = 0,
    ) -> None:
        super().__init__()
        self.initial_beta = beta
        self.estimator = estimator
        self.place = place
        self.target = target
        self.adaptation = adaptation
        self.reset_steps = reset_steps
        self.reference = None

    def faults(self) -> Iterator[tuple[str, str, object]]:
        """Settings that do not go together: the field, what is wrong with it, its value."""
        if self.place == "loss" and self.estimator == "k1":
            what = "must be k2 or k3 in the loss, where the gradient of k1 is zero in expectation (--algo.kl_in reward)"
            yield "kl_estimator", what, self.estimator
        if self.initial_beta <= 0 and self.target is not None:
            yield "kl_beta", "must be > 0 with --algo.kl_target: 0 stays 0", self.initial_beta
        if self.initial_beta <= 0 and self.reset_steps > 0:
            what = "must be 0 with --algo.kl_beta 0, which has no reference"
            yield "reference_reset_steps", what, self.reset_steps

    def begin(self, policy: Policy) -> None:
        """Take the policy as it is now for the reference.

        Raises:
            ValueError: the reference is to be reset, which that of a policy with an adapter can't be.
        """
        if self.initial_beta == 0:
            return
        self.reference = Reference(policy)
        self.register_buffer("beta", torch.tensor(self.initial_beta, dtype=torch.float64))
        if self.reset_steps and not self.reference.has_copy:
            raise ValueError(
                f"--algo.reference_reset_steps {self.reset_steps}: with an adapter the reference is the base model, "
                "which does not change; set it to 0"
            )

    def in_the(self, place: Literal["loss", "reward"]) -> bool:
        """Whether there is a term, and in this place."""
        return self.reference is not None and self.place == place

    def estimate(self, logprobs: Tensor, batch: RolloutBatch) -> Tensor:
        """The KL divergence at each token [B, T], from the policy's logprobs [B, T] of the batch."""
        assert self.reference is not None
        return kl(logprobs, self.reference.logprobs(batch), self.estimator)

    def add_to(self, output: LossOutput, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """The loss with the term, if it stands there, and `policy/kl_nats`."""
        if not self.in_the("loss"):
            return output
        estimate = self.estimate(scores.logprobs, batch)
        metrics = {**output.metrics, "policy/kl_nats": estimate.detach()}
        return LossOutput(output.loss + self.beta * estimate, metrics)

    def adapt(self, measured: float) -> None:
        """Move beta towards the target after a rollout step with this KL divergence, nats per token."""
        assert self.target is not None
        self.beta.fill_(adapted(float(self.beta), measured, target=self.target, rate=self.adaptation))

    def reset_if_due(self, rollout_step: int) -> bool:
        """Copy the policy into the reference after every `reset_steps` rollout steps; whether it did so."""
        if self.reference is None or self.reset_steps == 0 or (rollout_step + 1) % self.reset_steps:
            return False
        self.reference.reset()
        return True


def kl(logprobs: Tensor, other_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Schulman's estimates of KL(pi || other) at each token sampled from pi, with d = logp_other - logp.

        k1 = -d        k2 = d^2 / 2        k3 = exp(d) - d - 1

    Args: logprobs, other_logprobs [B, T]. Returns [B, T]; k2 and k3 are never negative.
    """
    d = (other_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return -d
    return d.square() / 2 if estimator == "k2" else d.exp() - d - 1


def adapted(beta: float, measured: float, *, target: float, rate: float) -> float:
    """beta (1 + rate clip(measured / target - 1, -0.2, 0.2)) (arXiv 1909.08593, section 2.2)."""
    error = measured / target - 1
    return beta * (1 + rate * min(max(error, -_LARGEST_ERROR), _LARGEST_ERROR))
