"""The evaluation of a policy between phases: pass@k on every set, in metrics.csv, the loggers and a record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from rloop_lightning.evaluation.earlier import earlier_metrics
from rloop_lightning.evaluation.evaluator import Evaluator
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
        metrics: dict[str, float] = {}
        evaluations = {}
        cost = SamplingCost()
        with self.signals.at_once(), evaluation_progress(title, self.parts) as progress:
            for name in self.parts.sets_between:
                evaluations[name] = evaluation = self.evaluator(name, cost)
                metrics |= evaluation.metrics
                progress.measured(name, metrics[f"eval/{name}/pass@1"])
        step = result_step(stage)
        if evaluations:
            tables = [evaluation.problems for evaluation in evaluations.values()]
            metrics |= earlier_metrics(pa.concat_tables(tables), self.folder.earlier_evaluations(stage))
            policy = EvaluatedPolicy(stage.name, stage.round, stage.phase, step)
            write_record(self.folder.evaluation(stage), policy, tables)
            _log.info(result_line(stage.name, metrics))
        time = {
            "time/evaluate_s": cost.generate_s + cost.reward_s,
            "time/evaluate_metrics_s": sum(evaluation.metrics_s for evaluation in evaluations.values()),
        }
        log = self.loggers.phase(stage)
        log.log_completions({name: evaluation.samples for name, evaluation in evaluations.items()}, step)
        log({**known, **metrics, **time}, step)
        return metrics
