"""What all consolidations on the expert set share: one optimizer step per mini-batch of it (rft.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from rloop_lightning.algorithms.consolidation import Start, TrainedConsolidation
from rloop_lightning.algorithms.kl_term import KLTerm
from rloop_lightning.algorithms.reference import ReferenceKind
from rloop_lightning.errors import RunFault
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.fields import NonNegativeFloat, PositiveInt
from rloop_lightning.types import LossOutput, RolloutBatch, TokenScores

_LARGEST_WEIGHT = torch.finfo(torch.float32).max


class FineTuning(TrainedConsolidation):
    """Fine-tunes a policy on the round's expert set. Subclasses implement `loss`.

    Args:
        start: the policy that is fine-tuned: `initial`, the policy that the round began with (RLoop, arXiv 2511.04285);
            `explored`, the policy that the exploration made of it; `base`, the policy that the run began with.
        expert_sets: what it is fine-tuned on: the `round`'s expert set (RLoop), or those of all rounds of the `run` so
            far, each rollout once.
        epochs: passes over the expert set.
        kl_beta: weight of a KL term against the reference policy on the expert set's tokens; 0 is off.
        kl_reference: the reference policy: the policy that the fine-tuning starts from (`round`), or, with an adapter
            (--policy.lora.rank), the `base` model under it.
        kl_estimator: estimator of the KL divergence at a token, with d = lp_ref - lp: `k2` d^2 / 2, `k3`
            exp(d) - d - 1.
        aggregation: how token losses become the loss of a mini-batch: `token-mean` is the mean over all its tokens,
            `sequence-mean` the mean over each rollout's tokens, then over rollouts, `sequence-sum` the sum over each
            rollout's tokens, then the mean over rollouts.
    """

    takes_experts = True
    does = "fine-tuning on the successes of hard problems"

    def __init__(
        self,
        *,
        start: Start = "initial",
        expert_sets: Literal["round", "run"] = "round",
        epochs: PositiveInt = 2,
        kl_beta: NonNegativeFloat = 0.0,
        kl_reference: ReferenceKind = "round",
        kl_estimator: Literal["k2", "k3"] = "k3",
        aggregation: Literal["token-mean", "sequence-mean", "sequence-sum"] = "token-mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(aggregation=aggregation, **kwargs)
        self.start = start
        self.expert_sets = expert_sets
        self.epochs = epochs
        self.kl = KLTerm(beta=kl_beta, estimator=kl_estimator, kind=kl_reference)
        for fault in self.kl.faults(self.flag):
            self.refuse(*fault)

    def configure_model(self) -> None:
        super().configure_model()
        self.kl.begin(self.policy)

    @property
    def keeps_copy(self) -> bool:
        return self.kl.has_copy

    def plan(self) -> str:
        of = {"initial": "", "explored": "the explored policy: ", "base": "the base policy: "}[self.start]
        sets = {"round": "the expert set", "run": "the expert sets of all rounds so far"}[self.expert_sets]
        return f"{of}{self.epochs} passes over {sets}, {self.rollouts_per_update} rollouts per optimizer step"

    def conflicts(self, policy: Policy, rounds: int) -> Iterator[str]:
        if fault := self.kl.conflict(policy, self.flag):
            yield fault

    def weight(self, reward: float) -> float:
        """The loss weight of an expert rollout with this reward, at least 0."""
        return 1.0

    def weights(self, rewards: Sequence[float]) -> list[float]:
        """The weights of an expert set's rollouts.

        Raises:
            RunFault: a weight is negative, which would make its completion less likely, or not finite; or all are 0,
                which would train nothing.
        """
        weights = [self.weight(reward) for reward in rewards]
        for weight, reward in zip(weights, rewards, strict=True):
            if not 0 <= weight <= _LARGEST_WEIGHT:
                raise RunFault(
                    f"{self.flag} {type(self).__name__}: the weight of a rollout with reward {reward:g} is {weight:g}; "
                    "its method `weight` must give finite numbers >= 0"
                )
        if weights and not any(weights):
            raise RunFault(
                f"{self.flag} {type(self).__name__}: all {len(weights)} rollouts of the expert set have weight 0 "
                f"(rewards {min(rewards):g} to {max(rewards):g}), so nothing would be trained; start a new run with "
                "another weight (rft: --consolidate.weight binary), or with rewards above 0 for successes"
            )
        return weights

    def micro_batch_loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        return self.kl.add_to(self.loss(scores, batch), scores, batch)

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        """One optimizer step."""
        self._record_updates([self.update(batch)])
        self._step_schedule()
