"""The evaluation of a policy between phases: pass@k on every set, in metrics.csv, the loggers and a record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from rloop_lightning.evaluation.earlier import earlier_metrics
from rloop_lightning.evaluation.evaluator import Evaluator, SetEvaluation
from rloop_lightning.evaluation.record import EvaluatedPolicy, write_record
from rloop_lightning.rollouts.sampler import SamplingCost
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.loggers import RunLoggers
from rloop_lightning.run.metrics_csv import result_step
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.progress import evaluation_progress
from rloop_lightning.run.results_table import result_line
from rloop_lightning.run.state import Stage
from rloop_lightning.system.signals import StopSignals

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyEvaluation:
    """Evaluates the loaded policy, with the same problems and seeds for all policies of a run.

    Args:
        evaluator: evaluates on one set.
        parts: the parts of the run.
        folder: the run folder.
        loggers: the loggers of the run.
        signals: the signals that stop the run, here at once.
    """

    evaluator: Evaluator
    parts: Parts
    folder: RunFolder
    loggers: RunLoggers
    signals: StopSignals

    def __call__(self, stage: Stage, title: str, known: Mapping[str, float]) -> dict[str, float]:
        """Evaluate, write the record, and log. Returns the metrics of all sets.

        Args:
            stage: the evaluation.
            title: title of the progress bar.
            known: further metrics to log with the policy.
        """
        cost = SamplingCost()
        evaluations = self._evaluate(title, cost)
        metrics = {name: value for evaluation in evaluations.values() for name, value in evaluation.metrics.items()}
        step = result_step(stage)
        if evaluations:
            tables = self._write(stage, step, evaluations)
            metrics |= earlier_metrics(pa.concat_tables(tables), self.folder.earlier_evaluations(stage))
            _log.info(result_line(stage.name, metrics))
        time = {
            "time/evaluate_s": cost.generate_s + cost.reward_s,
            "time/evaluate_metrics_s": sum(evaluation.metrics_s for evaluation in evaluations.values()),
        }
        log = self.loggers.phase(stage)
        log.log_completions({name: evaluation.samples for name, evaluation in evaluations.items()}, step)
        log({**known, **metrics, **time}, step)
        return metrics

    def write_again(self, stage: Stage, title: str) -> None:
        """Evaluate and write the record of an evaluation that is complete; log nothing."""
        self._write(stage, result_step(stage), self._evaluate(title, SamplingCost()))

    def _evaluate(self, title: str, cost: SamplingCost) -> dict[str, SetEvaluation]:
        """The evaluations by set. Adds their cost to `cost`."""
        evaluations = {}
        with self.signals.at_once(), evaluation_progress(title, self.parts) as progress:
            for name in self.parts.sets_between:
                evaluations[name] = evaluation = self.evaluator(name, cost)
                progress.measured(name, evaluation.metrics[f"eval/{name}/pass@1"])
        return evaluations

    def _write(self, stage: Stage, step: int, evaluations: Mapping[str, SetEvaluation]) -> list[pa.Table]:
        """Write the record of a policy. Returns its rows by set."""
        tables = [evaluation.problems for evaluation in evaluations.values()]
        policy = EvaluatedPolicy(stage.name, stage.round, stage.phase, step)
        write_record(self.folder.evaluation(stage), policy, tables)
        return tables
