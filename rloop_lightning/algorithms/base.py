"""What all algorithms share, and all consolidations: how rollouts become mini-batches.

    Algorithm       explores: turns groups of rollouts into advantages, then updates on them     (dapo.py, ...)
    Consolidation   fine-tunes the round's initial policy on the expert set                      (rft.py, ...)

A new algorithm subclasses `Algorithm`, gives `advantages` and `loss`, and declares its hyper-parameters as documented
arguments of `__init__`; everything else has a default here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from rloop_lightning.algorithms.losses import importance_weights, kl
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.types import (
    Group,
    LossOutput,
    Rollout,
    RolloutBatch,
    RolloutStep,
    SamplingParams,
    TokenScores,
    collate,
)


class Algorithm(PolicyModule):
    """Reinforcement learning on groups of rollouts. Subclasses give `advantages` and `loss`.

    Args:
        updates_per_step: optimizer steps on the rollouts of one rollout step, each on an equal share of them.
        importance_correction: weigh tokens by how much likelier the trainer's own old policy makes them than the engine
            said when it drew them (truncated importance sampling): `truncate` cuts a weight at the cap, `mask` drops
            what lies above it. `none` is right where both agree (policy/engine_gap_nats_max).
        importance_level: a weight for each `token`, or one for the whole `sequence`, the product of its tokens'.
        importance_cap: largest weight of a token, or of a whole sequence.
    """

    pools: Sequence[Path] = ()
    """The folders of the run's pools, that which the exploration fills last; the loop sets it."""

    def __init__(
        self,
        *,
        updates_per_step: int = 1,
        importance_correction: Literal["none", "truncate", "mask"] = "none",
        importance_level: Literal["token", "sequence"] = "token",
        importance_cap: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.updates_per_step = updates_per_step
        self.importance_correction = importance_correction
        self.importance_level = importance_level
        self.importance_cap = importance_cap
        self.require(updates_per_step >= 1, "updates_per_step", "must be at least 1 optimizer step", updates_per_step)
        self.require(importance_cap >= 1, "importance_cap", "must be >= 1", importance_cap)

    min_rollouts_per_problem = 1
    """How small a group may be for `advantages` to mean something."""

    max_generation_batches = 1
    """Problems that a rollout step may sample for groups that `keep_group` lets through, in multiples of its own P."""

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """Rewards [P, G] to advantages [P, G]."""

    def keep_group(self, group: Group) -> bool:
        """Whether a group is trained on; the rollout step samples on until it has enough that are."""
        return True

    def validate(self, sampling: SamplingParams) -> list[str]:
        """What does not work with this sampling, one message each."""
        return []

    def rewards(self, groups: Sequence[Group], sampling: SamplingParams) -> Tensor:
        """The rewards [B] that advantages are computed from, group by group; the pool keeps those without shaping."""
        return torch.tensor([rollout.reward for group in groups for rollout in group.rollouts], dtype=torch.float64)

    def in_loss(self, rollout: Rollout) -> bool:
        """Whether a rollout's tokens are in the loss."""
        return True

    @property
    def trains_on_stored(self) -> bool:
        """Whether `replayed` adds rollouts of a pool, which does not store the experts of their tokens."""
        return False

    def replayed(self, groups: Sequence[Group], sampling: SamplingParams) -> Sequence[Group]:
        """The groups that a step trains on: those that it generated, and what is replayed with them."""
        return groups

    def make_batch(self, groups: Sequence[Group], sampling: SamplingParams) -> RolloutBatch:
        """The batch of a rollout step, a row for each rollout, group by group."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        numbers = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group.rollouts) for group in groups]))
        rewards = self.rewards(groups, sampling)
        batch = collate(
            rollouts,
            self.group_advantages(rewards, numbers).numpy(),
            in_loss=[self.in_loss(rollout) for rollout in rollouts],
            temperature=sampling.temperature,
            max_new_tokens=sampling.max_new_tokens,
        )
        return replace(batch, rewards=rewards, groups=numbers)

    def group_advantages(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """The advantages [B] of rows whose groups may differ in size; rows of one group stand together.

        Args: rewards [B]; groups [B], the numbers of their groups.
        """
        _, sizes = groups.unique_consecutive(return_counts=True)
        size_of_row = sizes.repeat_interleave(sizes)
        advantages = torch.zeros(len(rewards), device=rewards.device)
        for size in sizes.unique().tolist():
            rows = size_of_row == size
            advantages[rows] = self.advantages(rewards[rows].unflatten(0, (-1, size))).flatten()
        return advantages

    def prepare(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch as the updates of its rollout step see it, before the first of them."""
        return batch

    def training_step(self, step: RolloutStep, batch_idx: int) -> None:
        """All optimizer steps of one rollout step, or those until a callback ends the phase."""
        started = perf_counter()
        updates = []
        generated = step.batch if self.policy.routing is None else self.policy.routing.admitted(step.batch)
        for batch in self._mini_batches(self.prepare(generated)):
            updates.append(self.update(batch))
            if self.trainer.should_stop:
                break
        self._optimizer().zero_grad()  # generation comes next, and wants the room
        self._record_updates(updates)
        self._step_schedule()
        self.record({**step.metrics, "time/update_s": perf_counter() - started})

    def micro_batch_loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """The loss, corrected for the engine's probabilities, and how far those are from the trainer's."""
        if batch.old_logprobs is None:  # no update yet: the policy still is the one that generated
            batch = replace(batch, old_logprobs=batch.recorded_or(scores.logprobs.detach()))
        output = self.loss(scores, batch)
        old_logprobs, sampling_logprobs = batch.old_logprobs, batch.sampling_logprobs
        assert old_logprobs is not None
        metrics = {
            **output.metrics,
            "policy/engine_kl_nats": kl(sampling_logprobs, old_logprobs, "k3"),
            "policy/engine_gap_nats_max": (old_logprobs - sampling_logprobs).abs(),
        }
        if self.importance_correction == "none":
            return LossOutput(output.loss, metrics)
        weights = importance_weights(
            old_logprobs,
            sampling_logprobs,
            batch.completion_mask,
            cap=self.importance_cap,
            level=self.importance_level,
            mode=self.importance_correction,
        )
        return LossOutput(output.loss * weights, {**metrics, "policy/importance_weight": weights})

    def _mini_batches(self, batch: RolloutBatch) -> Iterator[RolloutBatch]:
        """Equal shares of the rows, with the logprobs that the generating policy gave them.

        The first share needs no old logprobs: until its optimizer step, the policy still is the one that generated.
        """
        rows = torch.arange(len(batch), device=batch.loss_mask.device).tensor_split(self.updates_per_step)
        shares = [batch.select(share) for share in rows]
        yield from [shares[0], *[self._with_old_logprobs(share) for share in shares[1:]]]

    def _with_old_logprobs(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with what the old policy says of it, which is the current one before the first update."""
        if batch.old_logprobs is not None:
            return batch
        old = self.policy.scores_no_grad(batch)
        if self.policy.routing is not None and old.routed_experts is not None:
            batch = self.policy.routing.recorded(batch, old.routed_experts)
        return replace(batch, old_logprobs=batch.recorded_or(old.logprobs))


class Consolidation(PolicyModule):
    """Fine-tunes the policy that a round began with on the round's expert set. Subclasses give `loss`.

    Args:
        epochs: passes over the expert set.
        rollouts_per_update: rollouts in the mini-batch of an optimizer step.
    """

    flag = "--consolidate"

    def __init__(self, *, epochs: int = 2, rollouts_per_update: int = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epochs = epochs
        self.rollouts_per_update = rollouts_per_update
        self.require(epochs >= 1, "epochs", "must be at least 1", epochs)
        self.require(rollouts_per_update >= 1, "rollouts_per_update", "must be at least 1", rollouts_per_update)

    def weight(self, reward: float) -> float:
        """What an expert rollout of this reward weighs in the loss."""
        return 1.0

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        """One optimizer step."""
        self._record_updates([self.update(batch)])
        self._step_schedule()
