"""Evaluation during an exploration, every few rollout steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L

from rloop_lightning.evaluation.evaluator import Evaluator
from rloop_lightning.rollouts.sampler import SamplingCost


class InsideEvaluation(L.Callback):
    """Logs the evaluator's metrics every `every_n_steps` rollout steps, except after the last step of the phase.

    The loop evaluates the final policy of a phase on every set.
    """

    def __init__(self, evaluator: Evaluator, sets: Sequence[str], every_n_steps: int) -> None:
        self.evaluator = evaluator
        self.sets = sets
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = batch_idx + 1
        if step % self.every_n_steps or step == trainer.num_training_batches:
            return
        cost = SamplingCost()
        metrics = self.evaluator(self.sets, cost)
        metrics["time/evaluate_s"] = cost.generate_s + cost.reward_s
        pl_module.record(metrics)
