"""Evaluation during an exploration, every few rollout steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa

from rloop_lightning.evaluation.earlier import earlier_metrics
from rloop_lightning.evaluation.evaluator import Evaluator
from rloop_lightning.evaluation.record import EvaluatedPolicy, inside_record, write_record
from rloop_lightning.evaluation.samples import SampleCompletion
from rloop_lightning.rollouts.sampler import SamplingCost

LogCompletions = Callable[[Mapping[str, Sequence[SampleCompletion]], int], None]


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
        log_completions: takes sample completions by set, and the step in the phase, from 1.
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
        log_completions: LogCompletions | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.sets = sets
        self.every_n_steps = every_n_steps
        self.records = records
        self.round = round
        self.earlier = earlier
        self.log_completions = log_completions

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = batch_idx + 1
        if step % self.every_n_steps or step == trainer.num_training_batches:
            return
        cost = SamplingCost()
        found = {name: self.evaluator(name, cost) for name in self.sets}
        policy = EvaluatedPolicy(f"round {self.round + 1} step {step}", self.round, "explore", step)
        tables = [evaluation.problems for evaluation in found.values()]
        write_record(inside_record(self.records, step), policy, tables)
        if self.log_completions is not None:
            self.log_completions({name: evaluation.samples for name, evaluation in found.items()}, step)
        for evaluation in found.values():
            pl_module.record(evaluation.metrics)
        pl_module.record(earlier_metrics(pa.concat_tables(tables), self.earlier))
        metrics_s = sum(evaluation.metrics_s for evaluation in found.values())
        pl_module.record({"time/evaluate_s": cost.generate_s + cost.reward_s, "time/evaluate_metrics_s": metrics_s})
