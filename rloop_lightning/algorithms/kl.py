"""DAPO held near a reference policy by a KL term: the constrained baseline that RLoop is compared with."""

from __future__ import annotations

from typing import Any

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.kl_term import KLPenalty
from rloop_lightning.types import RolloutStep

# The controller's answer to a step whose KL is far off: a fifth too much, however far (arXiv 1909.08593, eq. 5).
_LARGEST_ERROR = 0.2


class KLConstrained(KLPenalty, DAPO):
    """DAPO with a KL term against the round's initial policy, a KL target, and resets of the reference.

    0.04 with k3 in the loss is GRPO's (arXiv 2402.03300); the target is held as in arXiv 1909.08593, the reference
    reset as in ProRL (arXiv 2505.24864), which gives no number of steps.

    Args:
        kl_beta: weight of the KL term; where it starts, if there is a target.
        kl_target: KL divergence to hold, nats a token: after each rollout step the weight grows or shrinks by how far
            the measured one is off; null keeps the weight.
        kl_adaptation: the weight changes by this times the relative error, which counts as a fifth at most.
        reference_reset_steps: after each so many rollout steps the reference becomes the policy as it is, and the
            optimizer begins anew; 0 never.
    """

    def __init__(
        self,
        *,
        kl_beta: float = 0.04,
        kl_target: float | None = None,
        kl_adaptation: float = 0.1,
        reference_reset_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(kl_beta=kl_beta, **kwargs)
        self.kl_target = kl_target
        self.kl_adaptation = kl_adaptation
        self.reference_reset_steps = reference_reset_steps
        self.require(kl_target is None or kl_target > 0, "kl_target", "must be > 0 nats or null", kl_target)
        self.require(
            kl_target is None or kl_beta > 0, "kl_beta", "must be > 0 with --algo.kl_target: 0 stays 0", kl_beta
        )
        self.require(kl_adaptation > 0, "kl_adaptation", "must be > 0", kl_adaptation)
        self.require(
            reference_reset_steps >= 0, "reference_reset_steps", "must be >= 0 rollout steps", reference_reset_steps
        )
        self.require(
            kl_beta > 0 or reference_reset_steps <= 0,
            "reference_reset_steps",
            "must be 0 with --algo.kl_beta 0, which has no reference",
            reference_reset_steps,
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.reference_reset_steps and self.reference is not None and not self.reference.has_copy:
            raise ValueError(
                f"--algo.reference_reset_steps {self.reference_reset_steps}: with an adapter the reference is the base "
                "model, which does not change; set it to 0"
            )

    def training_step(self, step: RolloutStep, batch_idx: int) -> None:
        super().training_step(step, batch_idx)
        if self.kl_target is not None and (measured := self.step_metrics.get("policy/kl_nats")) is not None:
            self.kl_beta = adapted(self.kl_beta, measured, target=self.kl_target, rate=self.kl_adaptation)
            self.record({"train/kl_beta": self.kl_beta})
        every = self.reference_reset_steps
        if self.reference is not None and every and (step.index + 1) % every == 0:
            self.reference.reset()
            self._optimizer().state.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["kl_beta"] = self.kl_beta

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.kl_beta = checkpoint["kl_beta"]


def adapted(beta: float, measured: float, *, target: float, rate: float) -> float:
    """beta (1 + rate clip(measured / target - 1, -0.2, 0.2)) (arXiv 1909.08593, section 2.2)."""
    error = measured / target - 1
    return beta * (1 + rate * min(max(error, -_LARGEST_ERROR), _LARGEST_ERROR))
