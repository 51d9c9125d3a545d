"""Distillation: the round's initial policy samples, and takes on the explored policy's distribution at its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from rloop_lightning.algorithms.consolidation import TrainedConsolidation
from rloop_lightning.algorithms.kl_term import kl
from rloop_lightning.algorithms.reference import Reference
from rloop_lightning.batching import check_kept_tokens, collate
from rloop_lightning.model.policy import Policy
from rloop_lightning.rollouts.unsolved import UnsolvedOnly
from rloop_lightning.system.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from rloop_lightning.types import Group, LossOutput, RolloutBatch, RolloutStep, SamplingParams, TokenScores

_SAMPLED_METRICS = ("rollout/reward_mean", "rollout/success_rate", "rollout/length_tokens", "rollout/truncated_rate")


class Distil(TrainedConsolidation):
    """On-policy distillation: (lp - lp_phi)^2 / 2 at tokens that the policy samples, averaged over them.

    phi is the explored policy, the teacher. The policy begins as theta_k and samples anew for every optimizer step, one
    completion per problem. The gradient of the loss is (lp - lp_phi) grad lp. Its mean over the tokens v that the
    policy samples after a prefix is the gradient of the reverse KL divergence there, because E[grad lp] = 0:

        grad KL(pi || phi) = sum_v pi_v (lp_v - lp_phi_v + 1) grad lp_v = E[(lp - lp_phi) grad lp]

    Prefixes count as given: a token does not answer for the divergence of later ones. Reverse KL on the student's own
    samples is that of arXiv 2306.13649; the estimate by sampled tokens alone and all sizes are ours. Logprobs are at
    the sampling temperature, and with top-k or top-p over the tokens that the policy kept. The reward trains nothing.

    Args:
        start: the policy that is trained: `initial`, the policy that the round began with, or `base`, the policy that
            the run began with.
        steps: optimizer steps; each samples rollouts_per_update completions first.
        aggregation: how token losses become the loss of a mini-batch: `token-mean` is the mean over all its tokens,
            `sequence-mean` the mean over each rollout's tokens, then over rollouts, `sequence-sum` the sum over each
            rollout's tokens, then the mean over rollouts.
        lr: peak learning rate.
        warmup_steps: training steps over which the learning rate rises linearly from 0.
        weight_decay: weight decay of matrices; norms and biases have none.
    """

    does = "distillation of the explored policy into the round's initial one, on the latter's own samples"
    max_generation_batches = 1
    unsolved = UnsolvedOnly()

    teacher: Reference

    def __init__(
        self,
        *,
        start: Literal["initial", "base"] = "initial",
        steps: PositiveInt = 50,
        aggregation: Literal["token-mean", "sequence-mean", "sequence-sum"] = "token-mean",
        lr: PositiveFloat = 1e-6,
        warmup_steps: NonNegativeInt = 0,
        weight_decay: NonNegativeFloat = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(aggregation=aggregation, lr=lr, warmup_steps=warmup_steps, weight_decay=weight_decay, **kwargs)
        self.start = start
        self.steps = steps

    def learn_from(self, policy: Policy) -> None:
        """Take the current weights of the policy as the teacher's. Call it before the fit."""
        self.teacher = Reference(policy)

    @property
    def keeps_copy(self) -> bool:
        return True

    @property
    def reads_explored(self) -> bool:
        return True

    def plan(self) -> str:
        into = {"initial": "the round's initial policy", "base": "the base policy"}[self.start]
        samples = f"{self.rollouts_per_update} samples of its own each"
        return f"{self.steps} optimizer steps of {into} towards the explored one, on {samples}"

    def keep_group(self, group: Group) -> bool:
        return True

    def replayed(self, groups: Sequence[Group], sampling: SamplingParams) -> Sequence[Group]:
        return groups

    def make_batch(self, groups: Sequence[Group], sampling: SamplingParams) -> RolloutBatch:
        """The batch of an optimizer step. Its routers choose their own experts.

        Raises:
            RunFault: tokens were sampled by top-k or top-p, and a rollout does not say from which.
        """
        rollouts = [replace(rollout, routed_experts=None) for group in groups for rollout in group.rollouts]
        check_kept_tokens(rollouts, sampling)
        return collate(
            rollouts,
            [1.0] * len(rollouts),
            temperature=sampling.temperature,
            max_new_tokens=sampling.max_new_tokens,
        )

    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        teacher = self.teacher.logprobs(batch)
        divergence = kl(scores.logprobs.detach(), teacher, "k3")
        return LossOutput(kl(scores.logprobs, teacher, "k2"), {"policy/teacher_kl_nats": divergence})

    def training_step(self, step: RolloutStep, batch_idx: int) -> None:
        """One optimizer step on the samples of the policy as it is."""
        self._record_updates([self.update(step.batch)])
        told = (*_SAMPLED_METRICS, "time/generate_s", "time/reward_s")
        self.record({name: value for name, value in step.metrics.items() if name in told})
        self._step_schedule()
