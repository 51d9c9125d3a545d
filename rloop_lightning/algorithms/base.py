"""What every algorithm shares: optimizer steps whose gradient does not depend on how a mini-batch is cut.

    PolicyModule      a LightningModule over a policy: `update(batch)` is one optimizer step
      Algorithm       explores: turns groups of rollouts into advantages, then updates on them     (dapo.py, ...)
      Consolidation   fine-tunes the round's initial policy on the expert set                      (rft.py, ...)

A new algorithm subclasses `Algorithm`, gives `advantages` and `loss`, and declares its hyper-parameters as documented
arguments of `__init__`; everything else has a default here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from time import perf_counter
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from rloop_lightning.losses import k3
from rloop_lightning.policy import Policy, TokenScores
from rloop_lightning.types import (
    Group,
    LossOutput,
    PendingUpdate,
    Rollout,
    RolloutBatch,
    RolloutStep,
    SamplingParams,
    collate,
)


class PolicyModule(L.LightningModule, ABC):
    """Trains a policy by optimizer steps on mini-batches of rollouts; AdamW, linear warm-up, then constant.

    Manual optimization: a rollout step holds several optimizer steps, each over micro-batches that fit the policy's
    token budget. The loop attaches the policy; a module owns nothing of its own before that.

    Args:
        lr: learning rate after warm-up (1e-6 and the three that follow are DAPO's, arXiv 2503.14476).
        warmup_steps: training steps over which the learning rate rises linearly from 0.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: gradients are clipped to this global L2 norm; 0 does not clip.
        beta1: AdamW's decay of the first moment.
        beta2: AdamW's decay of the second moment.
    """

    policy: Policy
    pending: PendingUpdate | None = None
    """The optimizer step that callbacks are looking at; `skip_update` calls it off."""

    def __init__(
        self,
        *,
        lr: float = 1e-6,
        warmup_steps: int = 20,
        weight_decay: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.999,
        max_grad_norm: float = 1.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.betas = (beta1, beta2)
        self.max_grad_norm = max_grad_norm
        self.step_metrics: dict[str, float] = {}
        self.require(lr > 0, "lr", "must be > 0", lr)
        self.require(warmup_steps >= 0, "warmup_steps", "must be >= 0 steps", warmup_steps)
        self.require(weight_decay >= 0, "weight_decay", "must be >= 0", weight_decay)
        self.require(0 <= beta1 < 1, "beta1", "must be in [0, 1)", beta1)
        self.require(0 <= beta2 < 1, "beta2", "must be in [0, 1)", beta2)
        self.require(max_grad_norm >= 0, "max_grad_norm", "must be >= 0", max_grad_norm)

    flag = "--algo"
    """The command line's name for this kind of module, for messages."""

    def require(self, holds: bool, name: str, what: str, got: object) -> None:
        """Note a wrong hyper-parameter; `invalid()` gives all of them at once."""
        if not holds:
            self.__dict__.setdefault("_invalid", []).append(f"{self.flag}.{name} {what}, got {got}")

    def invalid(self) -> list[str]:
        """What is wrong with the hyper-parameters, one message each."""
        return self.__dict__.get("_invalid", [])

    @abstractmethod
    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """The loss of a micro-batch, summed; what it is divided by is `loss_count` of the whole mini-batch."""

    def loss_count(self, batch: RolloutBatch) -> Tensor:
        """What the summed loss of a mini-batch is divided by; the tokens in the loss, unless overridden."""
        return batch.mask.sum()

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        # Lightning refuses to clip behind a fused optimizer under mixed precision: it may scale gradients by itself.
        fused = not isinstance(self.trainer.precision_plugin, MixedPrecision)
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused
        )
        warmup = max(1, self.warmup_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
        return [optimizer], [schedule]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Callbacks have seen the gradient by now, as it was before clipping.
        if self.max_grad_norm:
            self.clip_gradients(optimizer, self.max_grad_norm, "norm")

    def update(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """One optimizer step on a mini-batch; gives its metrics. A mini-batch without a token in the loss is no step.

        A callback may call the step off (`skip_update`), which then gives no metrics.

        The count that the loss is divided by is known before the first micro-batch and spans all ranks, and gradients
        are summed over ranks: neither micro-batch size nor world size changes the gradient.
        """
        counts = torch.stack([self.loss_count(batch).double(), batch.mask.sum().double()])
        count, tokens = self._sum_over_ranks(counts).float()
        if tokens == 0:
            return {}
        optimizer = self._optimizer()
        optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        with self._gradients_stay_local():
            for _, micro in self.policy.micro_batches(batch):
                scores = self.policy.logprobs(micro)
                output = self.micro_batch_loss(scores, micro)
                self.manual_backward(output.loss / count)
                _add(totals, {"train/loss": output.loss.detach()}, count)
                _add(totals, {"policy/entropy_nats": (scores.entropy * micro.mask).sum(), **output.metrics}, tokens)
        self._sum_gradients_over_ranks()
        totals = self._over_ranks(totals)
        self.pending = PendingUpdate(batch, totals["train/loss"])
        optimizer.step()
        pending, self.pending = self.pending, None
        return {} if pending is None else totals

    def skip_update(self) -> None:
        """Call the pending optimizer step off, with no trace in weights, moments or metrics; for callbacks."""
        self._optimizer().zero_grad(set_to_none=True)  # a parameter without a gradient is not stepped
        self.pending = None

    @torch.no_grad()
    def row_losses(self, batch: RolloutBatch) -> tuple[Tensor, Tensor]:
        """Each row's own loss, summed over its tokens [B], and its logprobs [B, T], under the current weights."""
        losses = torch.zeros(len(batch), dtype=torch.float64)
        logprobs = torch.zeros_like(batch.sampling_logprobs)
        for rows, micro in self.policy.micro_batches(batch):
            scores = self.policy.logprobs(micro)
            logprobs[rows, : micro.mask.shape[1]] = scores.logprobs
            for place, row in enumerate(rows.tolist()):
                length = int(micro.completion_lengths[place])
                own = TokenScores(scores.logprobs[[place], :length], scores.entropy[[place], :length])
                own.logprobs.requires_grad_()  # a loss may count on it
                with torch.enable_grad():
                    losses[row] = self.micro_batch_loss(own, micro.select(rows.new_tensor([place]))).loss.detach()
        return losses, logprobs

    def micro_batch_loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """`loss`, and whatever a kind of module adds to it for all its algorithms."""
        return self.loss(scores, batch)

    def _gradients_stay_local(self) -> AbstractContextManager[None]:
        """Keeps DDP from averaging at every backward: ranks differ in micro-batches, and we sum once, at the end."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if _several_ranks():
            dist.all_reduce(values)
        return values

    def _over_ranks(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each rank's share of the means, or its largest values, as those of all ranks."""
        if _several_ranks():
            for name in sorted(totals):
                dist.all_reduce(totals[name], dist.ReduceOp.MAX if name.endswith("_max") else dist.ReduceOp.SUM)
        return totals

    def _sum_gradients_over_ranks(self) -> None:
        if _several_ranks():
            for parameter in filter(lambda p: p.requires_grad, self.policy.parameters()):
                if parameter.grad is None:  # an expert that no token of this rank was routed to
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def record(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Note metrics of the current training step; the phase's record writes them once the step is over.

        Lightning sees them too, for callbacks that monitor one. It is kept from logging them itself: it would log the
        last value of a metric again in every step that has none.
        """
        self.step_metrics.update({name: float(value) for name, value in metrics.items()})
        self.log_dict({name: self.step_metrics[name] for name in metrics}, batch_size=1, logger=False)

    def _record_updates(self, per_update: Sequence[Mapping[str, Tensor]]) -> None:
        """Note what the optimizer steps of a training step gave: means, or largest values for `..._max`."""
        collected: dict[str, list[Tensor]] = defaultdict(list)
        for metrics in per_update:
            for name, value in metrics.items():
                collected[name].append(value)
        self.record(
            {
                name: torch.stack(values).max() if name.endswith("_max") else torch.stack(values).mean()
                for name, values in collected.items()
            }
        )
        self.record({"train/lr": self._optimizer().param_groups[0]["lr"]})

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def _step_schedule(self) -> None:
        schedule = self.lr_schedulers()
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        schedule.step()


class Algorithm(PolicyModule):
    """Reinforcement learning on groups of rollouts. Subclasses give `advantages` and `loss`.

    Args:
        updates_per_step: optimizer steps on the rollouts of one rollout step, each on an equal share of them.
    """

    def __init__(self, *, updates_per_step: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.updates_per_step = updates_per_step
        self.require(updates_per_step >= 1, "updates_per_step", "must be at least 1 optimizer step", updates_per_step)

    min_rollouts_per_problem = 1
    """How small a group may be for `advantages` to mean something."""

    max_generation_batches = 1
    """How many problems a rollout step may sample for groups that `keeps` lets through, in multiples of its own P."""

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """Rewards [P, G] to advantages [P, G]."""

    def keeps(self, group: Group) -> bool:
        """Whether a group is trained on; the rollout step samples on until it has enough that are."""
        return True

    def unfit(self, sampling: SamplingParams) -> list[str]:
        """What does not work with this sampling, one message each."""
        return []

    def rewards(self, groups: Sequence[Group], sampling: SamplingParams) -> Tensor:
        """The rewards [P, G] that advantages are computed from; shaping goes here, the pool keeps the raw ones."""
        return torch.tensor([[rollout.reward for rollout in group.rollouts] for group in groups], dtype=torch.float64)

    def carries_loss(self, rollout: Rollout) -> bool:
        """Whether a rollout's tokens are in the loss."""
        return True

    def make_batch(self, groups: Sequence[Group], sampling: SamplingParams) -> RolloutBatch:
        """The batch of a rollout step: P groups of G rollouts as B = P * G rows."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        return collate(
            rollouts,
            self.advantages(self.rewards(groups, sampling)).flatten().numpy(),
            carries_loss=[self.carries_loss(rollout) for rollout in rollouts],
            temperature=sampling.temperature,
        )

    def training_step(self, step: RolloutStep, batch_idx: int) -> None:
        """All optimizer steps of one rollout step, or those until a callback ends the phase."""
        started = perf_counter()
        updates = []
        for batch in self._mini_batches(step.batch):
            updates.append(self.update(batch))
            if self.trainer.should_stop:
                break
        self._record_updates(updates)
        self._step_schedule()
        self.record({**step.metrics, "time/update_s": perf_counter() - started})

    def micro_batch_loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """The loss; on the first optimizer step also how far engine and training logprobs are apart."""
        if batch.old_logprobs is not None:
            return self.loss(scores, batch)
        old_logprobs = scores.logprobs.detach()
        output = self.loss(scores, replace(batch, old_logprobs=old_logprobs))
        gap = (old_logprobs - batch.sampling_logprobs).abs() * batch.mask
        kl = k3(batch.sampling_logprobs, old_logprobs) * batch.mask
        discrepancy = {"policy/engine_kl_nats": kl.sum(), "policy/engine_gap_nats_max": gap.max()}
        return replace(output, metrics={**output.metrics, **discrepancy})

    def _mini_batches(self, batch: RolloutBatch) -> Iterator[RolloutBatch]:
        """Equal shares of the rows, with the logprobs that the generating policy gave them.

        The first share needs no old logprobs: until its optimizer step, the policy still is the one that generated.
        """
        rows = torch.arange(len(batch), device=batch.mask.device).tensor_split(self.updates_per_step)
        shares = [batch.select(share) for share in rows]
        yield from [shares[0], *[self._with_old_logprobs(share) for share in shares[1:]]]

    @torch.no_grad()
    def _with_old_logprobs(self, batch: RolloutBatch) -> RolloutBatch:
        old_logprobs = torch.zeros_like(batch.sampling_logprobs)
        for rows, micro in self.policy.micro_batches(batch):
            old_logprobs[rows, : micro.mask.shape[1]] = self.policy.logprobs(micro).logprobs
        return replace(batch, old_logprobs=old_logprobs)


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


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized()


def _add(totals: dict[str, Tensor], sums: Mapping[str, Tensor], count: Tensor) -> None:
    """Add a micro-batch's share of each mean; a metric named `..._max` keeps its largest value instead."""
    for name, value in sums.items():
        if name.endswith("_max"):
            totals[name] = torch.maximum(totals.get(name, value), value)
        else:
            totals[name] = totals.get(name, torch.zeros_like(value)) + value / count
