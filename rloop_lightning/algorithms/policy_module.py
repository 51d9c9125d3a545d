"""A LightningModule over a policy whose gradient does not depend on how a mini-batch is cut.

    PolicyModule      `update(batch)` is one optimizer step on a mini-batch of rollouts
      Algorithm       explores                                                       (base.py)
      Consolidation   fine-tunes the round's initial policy on the expert set        (base.py)

Subclasses give the loss of each token; it is masked, summed and divided here.
"""

from __future__ import annotations

import warnings
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
from rloop_lightning.algorithms.hyperparameters import CheckedHyperparameters
from rloop_lightning.algorithms.optimizer import (
    LRSchedule,
    learning_rate_factor,
    make_optimizer,
    optimizer_faults,
)
from rloop_lightning.algorithms.ranks import sum_gradients_over_ranks, sum_over_ranks
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.routing_replay import routing_count
from rloop_lightning.system.fields import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    RightOpenUnitInterval,
)
from rloop_lightning.types import LossOutput, PendingUpdate, RolloutBatch, TokenScores

# Adam moves a weight by about the learning rate, and bfloat16 forgets what is less than a 256th of the weight, which is
# 0.02 or so.
_LOST_IN_BFLOAT16 = 1e-4


class PolicyModule(CheckedHyperparameters, L.LightningModule, ABC):
    """Trains a policy by optimizer steps on mini-batches of rollouts.

    Manual optimization: a rollout step holds several optimizer steps, each over micro-batches that fit the policy's
    token budget. The loop attaches the policy; a module owns nothing of its own before that.

    Args:
        lr: peak learning rate (this default, and those of warmup_steps, weight_decay and max_grad_norm, are DAPO's,
            arXiv 2503.14476).
        lr_schedule: the learning rate after warm-up: `constant`, or falling to min_lr along a line (`linear`) or half a
            cosine (`cosine`) until the phase ends.
        min_lr: where `linear` and `cosine` end.
        warmup_steps: training steps over which the learning rate rises linearly from 0.
        optimizer: class path of the optimizer.
        optimizer_options: further arguments of the optimizer's class, such as {"momentum": 0.9}.
        weight_decay: weight decay of matrices; norms and biases have none.
        beta1: decay rate of the first moment, for an optimizer that takes betas.
        beta2: decay rate of the second moment, for an optimizer that takes betas.
        max_grad_norm: gradients are clipped to this global L2 norm; 0 does not clip.
        aggregation: from token losses to the loss of a mini-batch: `token-mean` over its tokens, `sequence-mean` over a
            rollout's tokens, then over rollouts, `sequence-sum` summed over a rollout's tokens, then the mean over
            rollouts, `constant` summed, divided by rollouts x length limit.
    """

    policy: Policy
    pending: PendingUpdate | None = None
    """The optimizer step that callbacks are looking at; `skip_update` calls it off."""

    def __init__(
        self,
        *,
        lr: PositiveFloat = 1e-6,
        lr_schedule: LRSchedule = "constant",
        min_lr: NonNegativeFloat = 0.0,
        warmup_steps: NonNegativeInt = 20,
        optimizer: str = "torch.optim.AdamW",
        optimizer_options: dict[str, Any] | None = None,
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
        """Raises ValueError, naming all hyper-parameters that are wrong."""
        if wrong := self.invalid():
            raise ValueError("\n".join(wrong))

    @abstractmethod
    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """The loss of each token of a micro-batch; masked, summed and divided as `aggregation` says."""

    def loss_count(self, batch: RolloutBatch) -> Tensor:
        """What the summed loss of a mini-batch is divided by, a scalar."""
        return loss_count(batch.loss_mask, self.aggregation, batch.max_new_tokens)

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule; a subclass may return others, in any form that Lightning takes."""
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        if self.lr < _LOST_IN_BFLOAT16 and any(p.dtype == torch.bfloat16 for p in parameters):
            warnings.warn(
                f"{self.flag}.lr {self.lr:g}: most updates are lost in the rounding of --policy.dtype bfloat16; leave "
                "it at float32, and set --trainer.precision bf16-mixed and --engine.dtype bfloat16",
                stacklevel=1,
            )
        optimizer = make_optimizer(
            self.optimizer,
            parameters,
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=self.betas,
            options=self.optimizer_options,
        )
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)]

    def _learning_rate_factor(self, step: int) -> float:
        # The length of the phase is known once the trainer has its data, which is after the schedule's first step.
        return learning_rate_factor(
            step,
            self.trainer.num_training_batches,
            schedule=self.lr_schedule,
            warmup_steps=self.warmup_steps,
            floor=self.min_lr / self.lr,
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Callbacks have seen the gradient by now, as it was before clipping. Lightning's own clipping refuses a fused
        # optimizer under mixed precision, as one may scale gradients by itself; here nothing does.
        if self.max_grad_norm:
            clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)

    def update(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """One optimizer step on a mini-batch; gives its metrics. A mini-batch without a token in the loss is no step.

        A callback may call the step off (`skip_update`), which then gives no metrics.

        The count that the loss is divided by is known before the first micro-batch and spans all ranks, and gradients
        are summed over ranks: neither micro-batch size nor world size changes the gradient.
        """
        counts = [self.loss_count(batch), batch.loss_mask.sum(), routing_count(batch)]
        count, tokens, routings = sum_over_ranks(torch.stack([one.double() for one in counts])).float()
        if tokens == 0:
            return {}
        optimizer = self._optimizer()
        optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        with self._gradients_stay_local():
            for _, micro in self.policy.micro_batches(batch):
                with self.policy.replaying(micro):
                    scores = self.scores(micro)
                    output = self.micro_batch_loss(scores, micro)
                    loss = self._by_token(output, micro).sum()
                    self.manual_backward(loss / count)
                totals.add(sums, {"train/loss": loss.detach()}, count)
                metrics = {"policy/entropy_nats": scores.entropy.detach(), **output.metrics}
                totals.add(sums, totals.sums_in_loss(metrics, micro), tokens)
                totals.add(sums, self.policy.routing_mismatches(micro, scores), routings)
        sum_gradients_over_ranks(self.policy.parameters())
        sums = totals.over_ranks(sums)
        self.pending = PendingUpdate(batch, sums["train/loss"])
        optimizer.step()
        pending, self.pending = self.pending, None
        return {} if pending is None else sums

    def scores(self, batch: RolloutBatch) -> TokenScores:
        """The policy's scores of a micro-batch, with the gradients that the loss needs."""
        return self.policy.logprobs(batch)

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
            logprobs[rows, : micro.loss_mask.shape[1]] = scores.logprobs
            with torch.enable_grad():  # which a loss may count on
                own = TokenScores(scores.logprobs.requires_grad_(), scores.entropy)
                losses[rows.cpu()] = (
                    self._by_token(self.micro_batch_loss(own, micro), micro).sum(1).detach().double().cpu()
                )
        return losses, logprobs

    def _by_token(self, output: LossOutput, batch: RolloutBatch) -> Tensor:
        """What each token adds to the sum over the mini-batch [B, T], 0 where it carries no loss."""
        if output.loss.shape not in (batch.loss_mask.shape, (len(batch), 1)):
            raise ValueError(
                f"{type(self).__name__}.loss must give the loss of each token {tuple(batch.loss_mask.shape)} or row "
                f"({len(batch)}, 1), not of shape {tuple(output.loss.shape)}; masking and summing is the trainer's"
            )
        weighted = output.loss * row_weights(batch.loss_mask, self.aggregation)[:, None]
        return weighted.expand(batch.loss_mask.shape).masked_fill(~batch.loss_mask, 0.0)

    def micro_batch_loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """`loss`, and whatever a kind of module does to it for all its algorithms."""
        return self.loss(scores, batch)

    def _gradients_stay_local(self) -> AbstractContextManager[None]:
        """Keeps DDP from averaging at every backward: ranks differ in micro-batches, and we sum once, at the end."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def record(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Note metrics of the current training step; the phase's record writes them once the step is over.

        Lightning sees them too, for callbacks that monitor one. It is kept from logging them itself: it would log the
        last value of a metric again in every step that has none.
        """
        self.step_metrics.update({name: float(value) for name, value in metrics.items()})
        self.log_dict({name: self.step_metrics[name] for name in metrics}, batch_size=1, logger=False)

    def _record_updates(self, per_update: Sequence[Mapping[str, Tensor]]) -> None:
        """Note what the optimizer steps of a training step gave."""
        self.record(totals.over_updates(per_update))
        self.record({"train/lr": self._optimizer().param_groups[0]["lr"]})

    def _optimizer(self) -> LightningOptimizer:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def _step_schedule(self) -> None:
        """One step of every schedule, by Lightning's hook, which a subclass may override."""
        for config in self.trainer.lr_scheduler_configs:
            self.lr_scheduler_step(config.scheduler, None)
