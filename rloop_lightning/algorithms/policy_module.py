"""A LightningModule over a policy whose gradient does not depend on how a mini-batch is cut.

    PolicyModule      `update(batch)` is one optimizer step on a mini-batch of rollouts
      Algorithm       explores                                                       (base.py)
      Consolidation   fine-tunes the round's initial policy on the expert set        (base.py)

Subclasses give the loss of each token; what it is summed to, and divided by, is decided here.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from rloop_lightning.algorithms.losses import Aggregation, loss_count, row_weights
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.routing_replay import routing_count
from rloop_lightning.types import LossOutput, PendingUpdate, RolloutBatch, TokenScores

# Adam moves a weight by about the learning rate, and bfloat16 forgets what is less than a 256th of the weight, which is
# 0.02 or so.
_LOST_IN_BFLOAT16 = 1e-4


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

    aggregation: Aggregation = "token-mean"
    """How the loss of tokens becomes that of a mini-batch."""

    @abstractmethod
    def loss(self, scores: TokenScores, batch: RolloutBatch) -> LossOutput:
        """The loss of each token of a micro-batch; masked, summed and divided as `aggregation` says."""

    def loss_count(self, batch: RolloutBatch) -> Tensor:
        """What the summed loss of a mini-batch is divided by, a scalar."""
        return loss_count(batch.loss_mask, self.aggregation, batch.max_new_tokens)

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        if self.lr < _LOST_IN_BFLOAT16 and any(p.dtype == torch.bfloat16 for p in parameters):
            warnings.warn(
                f"{self.flag}.lr {self.lr:g}: most updates are lost in the rounding of --policy.dtype bfloat16; leave "
                "it at float32, and set --trainer.precision bf16-mixed and --engine.dtype bfloat16",
                stacklevel=1,
            )
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )
        warmup = max(1, self.warmup_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
        return [optimizer], [schedule]

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
        count, tokens, routings = self._sum_over_ranks(torch.stack([one.double() for one in counts])).float()
        if tokens == 0:
            return {}
        optimizer = self._optimizer()
        optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        with self._gradients_stay_local():
            for _, micro in self.policy.micro_batches(batch):
                with self.policy.replaying(micro):
                    scores = self.policy.logprobs(micro)
                    output = self.micro_batch_loss(scores, micro)
                    loss = self._by_token(output, micro).sum()
                    self.manual_backward(loss / count)
                _add(totals, {"train/loss": loss.detach()}, count)
                metrics = {"policy/entropy_nats": scores.entropy, **output.metrics}
                _add(totals, {name: _in_loss(value, micro, name) for name, value in metrics.items()}, tokens)
                _add(totals, self.policy.routing_mismatches(micro, scores), routings)
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

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if _several_ranks():
            dist.all_reduce(values)
        return values

    def mean_over_ranks(self, total: Tensor, count: Tensor) -> Tensor:
        """A mean over what all ranks hold, from this rank's share of it, two scalars; for metrics outside `update`."""
        total, count = self._sum_over_ranks(torch.stack([total.double(), count.double()]))
        return total / count

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


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized()


def _add(totals: dict[str, Tensor], sums: Mapping[str, Tensor], count: Tensor) -> None:
    """Add a micro-batch's share of each mean; a metric named `..._max` keeps its largest value instead."""
    for name, value in sums.items():
        if name.endswith("_max"):
            totals[name] = torch.maximum(totals.get(name, value), value)
        else:
            totals[name] = totals.get(name, torch.zeros_like(value)) + value / count


def _in_loss(metric: Tensor, batch: RolloutBatch, name: str) -> Tensor:
    """A metric's sum over the tokens in the loss; of `..._max`, its largest value."""
    values = metric.float().expand(batch.loss_mask.shape).masked_fill(~batch.loss_mask, 0.0)
    return values.max() if name.endswith("_max") else values.sum()
