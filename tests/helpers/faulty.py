"""Algorithms and a callback that go wrong at a given moment, named on the command line by class path."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.model.sharding import local
from rloop_lightning.types import LossOutput


class NaNLoss(DAPO):
    """DAPO; in one optimizer step the loss of the rollouts of largest advantage is NaN, and their gradient 0.

    Args:
        at: the optimizer step, from 0.
    """

    def __init__(self, *, at: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.at = at

    def loss(self, scores: Any, batch: Any) -> LossOutput:
        output = super().loss(scores, batch)
        if self.trainer.global_step != self.at:
            return output
        bad = torch.where(batch.advantages >= 0.5, float("nan"), 0.0)[:, None]
        return LossOutput(output.loss + bad, output.metrics)


class InfiniteGradient(RFT):
    """RFT; the gradient of the first optimizer step is infinite, its loss is not."""

    def loss(self, scores: Any, batch: Any) -> LossOutput:
        output = super().loss(scores, batch)
        if self.trainer.global_step == 0:
            scores.logprobs.register_hook(lambda gradient: gradient * float("inf"))
        return output


class InfiniteWeight(L.Callback):
    """Makes a weight infinite at the end of the second training step of a phase."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            local(next(pl_module.policy.parameters()).data)[0, 0] = float("inf")


class EndsOnRank0(L.Callback):
    """Ends a phase after the first of the updates of its second training step, on rank 0 alone."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 2 and trainer.is_global_zero:
            trainer.should_stop = True


class EndsOnRank1(L.Callback):
    """Wants to end a phase after its first training step, on rank 1 alone, which does not decide that."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1:
            trainer.should_stop = True
