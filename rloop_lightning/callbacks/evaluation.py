"""Evaluation during an exploration, every few rollout steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa

from rloop_lightning.evaluation.earlier import earlier_metrics
from rloop_lightning.evaluation.evaluator import Evaluator
from rloop_lightning.evaluation.record import EvaluatedPolicy, inside_record, write_record
from rloop_lightning.rollouts.sampler import SamplingCost


class InsideEvaluation(L.Callback):
    """Logs the evaluator's metrics every `every_n_steps` rollout steps, except after the last step of the phase.

    The loop evaluates the final policy of a phase on every set.

    Args:
        evaluator: evaluates the current policy.
        sets: names of the evaluation sets.
        every_n_steps: rollout steps between evaluations.
        records: folder of the records, `step-000020.parquet` with one row per problem.
        round: round of the run, from 0.
        earlier: the records of the policies that were evaluated between the phases before.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        sets: Sequence[str],
        every_n_steps: int,
        *,
        records: Path,
        round: int,
        earlier: Sequence[Path] = (),
    ) -> None:
        self.evaluator = evaluator
        self.sets = sets
        self.every_n_steps = every_n_steps
        self.records = records
        self.round = round
        self.earlier = earlier

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = batch_idx + 1
        if step % self.every_n_steps or step == trainer.num_training_batches:
            return
        cost = SamplingCost()
        evaluations = [self.evaluator(name, cost) for name in self.sets]
        policy = EvaluatedPolicy(f"round {self.round + 1} step {step}", self.round, "explore", step)
        tables = [evaluation.problems for evaluation in evaluations]
        write_record(inside_record(self.records, step), policy, tables)
        for evaluation in evaluations:
            pl_module.record(evaluation.metrics)
        pl_module.record(earlier_metrics(pa.concat_tables(tables), self.earlier))
        pl_module.record({"time/evaluate_s": cost.generate_s + cost.reward_s})
