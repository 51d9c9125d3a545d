"""A LightningModule that trains a policy. Its gradient does not depend on micro-batch size or world size.

    PolicyModule      `update(batch)` is one optimizer step on a mini-batch of rollouts
      Algorithm       explores                                                       (base.py)
      Consolidation   fine-tunes the round's initial policy on the expert set        (consolidation.py)

Subclasses compute the loss of each token. This class masks, sums and divides it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from rloop_lightning.algorithms import totals
from rloop_lightning.algorithms.aggregation import Aggregation, loss_count, row_weights
from rloop_lightning.algorithms.bfloat16 import float32_sums
from rloop_lightning.algorithms.hyperparameters import CheckedHyperparameters
from rloop_lightning.algorithms.optimizer import (
    LRSchedule,
    learning_rate_factor,
    make_optimizer,
    optimizer_faults,
)
from rloop_lightning.algorithms.ranks import sum_gradients_over_ranks, sum_over_ranks
from rloop_lightning.algorithms.shares import micro_batches
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.routing_replay import routing_count
from rloop_lightning.model.sharding import shard
from rloop_lightning.system.fields import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    RightOpenUnitInterval,
)
from rloop_lightning.types import LossOutput, PendingUpdate, RolloutBatch, TokenScores


class PolicyModule(CheckedHyperparameters, L.LightningModule, ABC):
    """Trains a policy by optimizer steps on mini-batches of rollouts.

    It uses manual optimization: a rollout step has several optimizer steps, each accumulated over micro-batches within
    the policy's token budget. The loop attaches the policy after construction.

    Args:
        lr: peak learning rate (the defaults of lr, warmup_steps, weight_decay and max_grad_norm are DAPO's, arXiv
            2503.14476).
        lr_schedule: learning rate after warm-up: `constant`, or decay to min_lr by the end of the phase, `linear` or
            along half a `cosine`.
        min_lr: final learning rate of `linear` and `cosine`.
        warmup_steps: training steps over which the learning rate rises linearly from 0.
        optimizer: `adamw`; `adamw8bit` with moments in 8 bits, `paged_adamw8bit` and `paged_adamw32bit` with moments
            that move to the host when a GPU is full (all three need the package bitsandbytes); or a class path.
        optimizer_options: further arguments of the optimizer class, such as {"momentum": 0.9}.
        offload_optimizer: keep the optimizer's state in the host's memory between steps, if the run has a GPU. Takes
            the time of copying it there and back in each step.
        weight_decay: weight decay of matrices; norms and biases have none.
        beta1: decay rate of the first moment, for an optimizer with betas.
        beta2: decay rate of the second moment, for an optimizer with betas.
        max_grad_norm: clip gradients to this global L2 norm; 0 is off.
        aggregation: how token losses become the loss of a mini-batch: `token-mean` is the mean over all its tokens,
            `sequence-mean` the mean over each rollout's tokens, then over rollouts, `sequence-sum` the sum over each
            rollout's tokens, then the mean over rollouts, `constant` the sum divided by rollouts x length limit.
    """

    policy: Policy
    pending: PendingUpdate | None = None
    """The optimizer step in progress, for callbacks; `skip_update` cancels it."""

    def __init__(
        self,
        *,
        lr: PositiveFloat = 1e-6,
        lr_schedule: LRSchedule = "constant",
        min_lr: NonNegativeFloat = 0.0,
        warmup_steps: NonNegativeInt = 20,
        optimizer: str = "adamw",
        optimizer_options: dict[str, Any] | None = None,
        offload_optimizer: bool = False,
        weight_decay: NonNegativeFloat = 0.1,
        beta1: RightOpenUnitInterval = 0.9,
        beta2: RightOpenUnitInterval = 0.999,
        max_grad_norm: NonNegativeFloat = 1.0,
        aggregation: Aggregation = "token-mean",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lr = lr
        self.lr_schedule = lr_schedule
        self.min_lr = min_lr
        self.warmup_steps = warmup_steps
        self.optimizer = optimizer
        self.optimizer_options = optimizer_options or {}
        self.offload_optimizer = offload_optimizer
        self.weight_decay = weight_decay
        self.betas = (beta1, beta2)
        self.max_grad_norm = max_grad_norm
        self.aggregation = aggregation
        self.step_metrics: dict[str, float] = {}
        self.require(not 0 < lr < min_lr, "min_lr", f"must be at most {self.flag}.lr {lr:g}", min_lr)
        self.require(
            min_lr == 0 or lr_schedule != "constant",
            "min_lr",
            f"needs {self.flag}.lr_schedule linear or cosine",
            min_lr,
        )
        for fault in optimizer_faults(optimizer, self.optimizer_options, betas=self.betas, weight_decay=weight_decay):
            self.refuse(*fault)

    def setup(self, stage: str) -> None:
        """Check the hyper-parameters.

        Raises:
            ValueError: names all that are wrong.
        """
        if wrong := self.invalid():
            raise ValueError("\n".join(wrong))

    def configure_model(self) -> None:
        """Shard the policy if the strategy shards weights."""
        if (mesh := self.device_mesh) is not None:
            names = mesh.mesh_dim_names or ()
            shard(self.policy, mesh["data_parallel"] if "data_parallel" in names else mesh)
            # Lightning looks for each weight of shards by itself, also for the frozen ones that checkpoints leave out.
            self.strict_loading = self.policy.adapter is None

    @abstractmethod
    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """The loss of each token of a micro-batch, [B, T], or of each row, [B, 1]; before mask and aggregation."""

    def loss_count(self, batch: RolloutBatch) -> Tensor:
        """The divisor of the summed loss of a mini-batch, a scalar."""
        return loss_count(batch.loss_mask, self.aggregation, batch.max_new_tokens)

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule. A subclass may return others, in any form that Lightning accepts."""
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        optimizer = make_optimizer(
            self.optimizer,
            parameters,
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=self.betas,
            options=self.optimizer_options,
            offload=self.offload_optimizer,
        )
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)]

    def _learning_rate_factor(self, step: int) -> float:
        # The trainer knows the phase's length only after the schedule's first step, so it is read at each step.
        return learning_rate_factor(
            step,
            self.trainer.num_training_batches,
            schedule=self.lr_schedule,
            warmup_steps=self.warmup_steps,
            floor=self.min_lr / self.lr,
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Callbacks run before this hook and see the unclipped gradient. Lightning's own clipping refuses fused
        # optimizers under mixed precision, because they may scale gradients themselves. Here nothing scales them.
        if self.max_grad_norm:
            clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)

    def update(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """One optimizer step on a mini-batch. Returns its metrics; none if a callback cancels it (`skip_update`).

        A mini-batch without loss tokens makes no step.

        Every rank gets the whole mini-batch and computes its share (shares.py). The divisor of the loss is that of the
        whole, and gradients are summed over micro-batches and ranks. The gradient therefore depends neither on
        micro-batch size nor on world size.
        """
        count = self.loss_count(batch).float()
        tokens, routings = batch.loss_mask.sum().float(), routing_count(batch).float()
        if tokens == 0:
            return {}
        optimizer = self._optimizer()
        optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        with self._gradients_stay_local(), float32_sums(self.policy.parameters()):
            for rows, micro in micro_batches(self.policy, batch):
                with self.policy.replaying(micro):
                    scores = self.scores(micro)
                    output = self.micro_batch_loss(scores, micro)
                    loss = self._by_token(output, micro).sum()
                    self.manual_backward(loss / count)
                totals.add(sums, {"train/loss": loss.detach()}, count)
                metrics = {"policy/entropy_nats": scores.entropy.detach(), **output.metrics}
                totals.add(sums, totals.sums_in_loss(metrics, micro), tokens)
                mismatches = self.policy.routing_mismatches(micro, scores)  # of a row without a number, not to count
                totals.add(sums, {name: value * bool(len(rows)) for name, value in mismatches.items()}, routings)
        sum_gradients_over_ranks(self.policy.parameters())
        sums = totals.over_ranks(sums)
        self.pending = PendingUpdate(batch, sums["train/loss"])
        optimizer.step()
        optimizer.zero_grad()  # generation, which comes next, needs the memory
        pending, self.pending = self.pending, None
        return {} if pending is None else sums

    def scores(self, batch: RolloutBatch) -> TokenScores:
        """The policy's scores of a micro-batch, with the gradients that the loss needs."""
        return self.policy.logprobs(batch)

    def skip_update(self) -> None:
        """Cancel the pending optimizer step, for callbacks. Weights, moments and metrics stay unchanged."""
        self._optimizer().zero_grad(set_to_none=True)  # optimizers skip parameters without a gradient
        self.pending = None

    @torch.no_grad()
    def row_losses(self, batch: RolloutBatch) -> tuple[Tensor, Tensor]:
        """Each row's loss, summed over its tokens [B], and logprobs [B, T], under the current weights.

        Every rank gets the whole batch and computes its share.
        """
        logprobs = torch.zeros_like(batch.sampling_logprobs)
        losses = logprobs.new_zeros(len(batch), dtype=torch.float64)
        for rows, micro in micro_batches(self.policy, batch):
            scores = self.policy.logprobs(micro)
            logprobs[rows, : micro.loss_mask.shape[1]] = scores.logprobs[: len(rows)]
            with torch.enable_grad():  # a loss may rely on autograd
                own = TokenScores(scores.logprobs.requires_grad_(), scores.entropy)
                by_token = self._by_token(self.micro_batch_loss(own, micro), micro).detach()
            losses[rows] = by_token.sum(1).double()[: len(rows)]
        return sum_over_ranks(losses).cpu(), sum_over_ranks(logprobs)

    def _by_token(self, output: LossOutput, batch: RolloutBatch) -> Tensor:
        """Each token's term in the sum over the mini-batch [B, T]; 0 outside the loss mask."""
        if output.loss.shape not in (batch.loss_mask.shape, (len(batch), 1)):
            raise ValueError(
                f"{type(self).__name__}.loss must give the loss of each token {tuple(batch.loss_mask.shape)} or row "
                f"({len(batch)}, 1), not of shape {tuple(output.loss.shape)}; masking and summing is the trainer's"
            )
        weighted = output.loss * row_weights(batch.loss_mask, self.aggregation)[:, None]
        return weighted.expand(batch.loss_mask.shape).masked_fill(~batch.loss_mask, 0.0)

    def micro_batch_loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """`loss` with the options of this kind of module applied."""
        return self.loss(scores, batch)

    def _gradients_stay_local(self) -> AbstractContextManager[None]:
        """Keep DDP from averaging in each backward: ranks differ in micro-batches, and `update` sums once."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def record(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Record metrics of the current training step. A callback writes them after the step.

        Lightning gets them too, for callbacks that monitor a metric. Its own logging is off: it would repeat a metric's
        last value in every step without one.
        """
        self.step_metrics.update({name: float(value) for name, value in metrics.items()})
        self.log_dict({name: self.step_metrics[name] for name in metrics}, batch_size=1, logger=False)

    def _record_updates(self, per_update: Sequence[Mapping[str, Tensor]]) -> None:
        """Record the metrics of a training step's optimizer steps."""
        self.record(totals.over_updates(per_update))
        self.record({"train/lr": self._optimizer().param_groups[0]["lr"]})

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def _step_schedule(self) -> None:
        """Step every schedule through Lightning's hook, which a subclass may override."""
        for config in self.trainer.lr_scheduler_configs:
            self.lr_scheduler_step(config.scheduler, None)
