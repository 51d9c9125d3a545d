"""The KL term: keeps the policy close to the round's initial policy, or to the base model under its adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from rloop_lightning.algorithms.reference import Reference, ReferenceKind
from rloop_lightning.algorithms.shares import scores_no_grad
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores

KLEstimator = Literal["k1", "k2", "k3"]

# k3's exp(d) is linear above ratio 10, the default of dual_clip. At d = 19, a token would have a gradient of 1.8e8.
_LINEAR_ABOVE = math.log(10)

# The controller clips the relative error to +-0.2 (arXiv 1909.08593, eq. 5).
_LARGEST_ERROR = 0.2


class KLTerm(nn.Module):
    """beta times an estimate of KL(policy || reference), per token.

    It is a submodule of the training module, so that checkpoints include the reference and beta. With beta 0 there is
    neither.

    Args:
        beta: weight of the term; with a target, its initial weight.
        estimator: estimator of the KL divergence at a token, see `kl`.
        place: `loss` adds the term to each token's loss; `reward` subtracts it from the reward, summed over the
            rollout and without gradient.
        target: target KL divergence, nats per token; None keeps beta constant.
        adaptation: adaptation rate of beta, see `adapted`.
        reset_steps: rollout steps between resets of the reference (ProRL, arXiv 2505.24864); 0 never resets it.
        kind: `round` takes the round's initial policy as the reference, `base` the model under the policy's adapter.
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
        kind: ReferenceKind = "round",
    ) -> None:
        super().__init__()
        self.initial_beta = beta
        self.estimator = estimator
        self.place = place
        self.target = target
        self.adaptation = adaptation
        self.reset_steps = reset_steps
        self.kind = kind
        self.reference = None

    def faults(self, flag: str) -> Iterator[tuple[str, str, object]]:
        """Conflicting settings: the field, the error, its value.

        Args:
            flag: that of the module whose settings they are.
        """
        if self.place == "loss" and self.estimator == "k1":
            what = (
                f"must be k2 or k3 in the loss, where the gradient of k1 is zero in expectation ({flag}.kl_in reward)"
            )
            yield "kl_estimator", what, self.estimator
        if self.initial_beta <= 0 and self.target is not None:
            yield "kl_beta", f"must be > 0 with {flag}.kl_target: 0 stays 0", self.initial_beta
        if self.initial_beta <= 0 and self.reset_steps > 0:
            what = f"must be 0 with {flag}.kl_beta 0, which has no reference"
            yield "reference_reset_steps", what, self.reset_steps
        if self.initial_beta <= 0 and self.kind == "base":
            yield "kl_reference", f"needs {flag}.kl_beta above 0, without which there is no reference", self.kind
        if self.kind == "base" and self.reset_steps > 0:
            what = f"must be 0 with {flag}.kl_reference base, which never changes"
            yield "reference_reset_steps", what, self.reset_steps

    def begin(self, policy: Policy) -> None:
        """Use the current policy as the reference, or its base model."""
        if self.initial_beta == 0:
            return
        self.reference = Reference(policy, self.kind)
        self.register_buffer("beta", torch.tensor(self.initial_beta, dtype=torch.float64))

    def conflict(self, policy: Policy, flag: str) -> str:
        """Why the policy can't have this reference; empty if it can."""
        if self.initial_beta == 0 or self.kind == "round" or policy.adapter is not None:
            return ""
        return (
            f"{flag}.kl_reference base: only a policy with an adapter contains its base model; set --policy.lora.rank, "
            "or take round"
        )

    @property
    def has_copy(self) -> bool:
        """Whether the term keeps a copy of the trained weights."""
        return self.initial_beta > 0 and self.kind == "round"

    def in_the(self, place: Literal["loss", "reward"]) -> bool:
        """Whether the term is on and added in this place."""
        return self.reference is not None and self.place == place

    def estimate(self, logprobs: Tensor, batch: RolloutBatch) -> Tensor:
        """The estimated KL divergence at each token [B, T], from the policy's logprobs [B, T]."""
        assert self.reference is not None
        return kl(logprobs, self.reference.logprobs(batch), self.estimator)

    def estimate_over_ranks(self, logprobs: Tensor, batch: RolloutBatch) -> Tensor:
        """`estimate` of a batch that every rank has; each rank computes its share, and gets all."""
        assert self.reference is not None
        return kl(logprobs, self.reference.logprobs(batch, scores_no_grad), self.estimator)

    def add_to(self, output: LossOutput, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """The loss plus the term, with the metric `policy/kl_nats`; unchanged if the term is not in the loss."""
        if not self.in_the("loss"):
            return output
        estimate = self.estimate(scores.logprobs, batch)
        metrics = {**output.metrics, "policy/kl_nats": estimate.detach()}
        return LossOutput(output.loss + self.beta * estimate, metrics)

    def adapt(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Adapt beta, if it has a target, to the KL divergence that a rollout step measured. Returns it as a metric."""
        measured = metrics.get("policy/kl_nats")
        if self.target is None or measured is None:
            return {}
        self.beta.fill_(adapted(float(self.beta), measured, target=self.target, rate=self.adaptation))
        return {"train/kl_beta": float(self.beta)}

    def reset_if_due(self, rollout_step: int) -> bool:
        """Copy the policy into the reference every `reset_steps` rollout steps. Returns whether it did."""
        if self.reference is None or self.reset_steps == 0 or (rollout_step + 1) % self.reset_steps:
            return False
        self.reference.reset()
        return True


def kl(logprobs: Tensor, other_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Schulman's estimators of KL(pi || other) at tokens sampled from pi, with d = logp_other - logp.

        k1 = -d        k2 = d^2 / 2        k3 = exp(d) - d - 1

    Above d = ln 10, exp(d) continues as its tangent, 10 (1 + d - ln 10), so that the gradient of k3 lies between -9
    and 1 and never ends. There k3 underestimates; it is exact wherever the policy's probability is at least a tenth of
    the other's.

    k3 is computed in float64: in float32, the difference of numbers near 1 has few digits left for small d, and may be
    negative.

    Args: logprobs, other_logprobs [B, T]. Returns [B, T]; k2 and k3 are never negative.
    """
    d = other_logprobs - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    wide = d.double()
    below = wide.clamp(max=_LINEAR_ABOVE)
    growth = torch.expm1(below)
    return (growth - below + growth * (wide - below)).to(d.dtype)


def adapted(beta: float, measured: float, *, target: float, rate: float) -> float:
    """beta (1 + rate clip(measured / target - 1, -0.2, 0.2)) (arXiv 1909.08593, section 2.2)."""
    error = measured / target - 1
    return beta * (1 + rate * min(max(error, -_LARGEST_ERROR), _LARGEST_ERROR))
