"""Logs, after the first rollout step of an exploration, how long the rest of the run will take."""

from __future__ import annotations

import logging
import sys
from time import perf_counter
from typing import Any

import lightning as L
from tqdm import tqdm

_log = logging.getLogger(__name__)


class RunEstimate(L.Callback):
    """Estimates the time of a run's remaining rollout steps and evaluations from the first rollout step.

    Place it before the callback that clears `step_metrics`.

    Args:
        rollout_steps: rollout steps left in the run, including the first one.
        evaluation_rollouts: rollouts of the evaluations left in the run.
    """

    def __init__(self, rollout_steps: int, evaluation_rollouts: int) -> None:
        self.rollout_steps = rollout_steps
        self.evaluation_rollouts = evaluation_rollouts
        self._started: float | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._started = perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._started is None:
            return
        step_s, self._started = perf_counter() - self._started, None
        metrics = pl_module.step_metrics
        sampling_s = metrics["time/generate_s"] + metrics["time/reward_s"]
        evaluation_s = self.evaluation_rollouts * sampling_s / metrics["rollout/generated_rollouts"]
        planned = int(trainer.num_training_batches)
        expected = batch.phase_steps or planned
        later = (self.rollout_steps - (planned - batch_idx)) * expected / planned  # in later explorations
        steps = expected - batch_idx - 1 + round(later)
        with tqdm.external_write_mode(file=sys.stderr):  # otherwise the line is appended to the progress bar
            _log.info(
                f"time left: about {duration(steps * step_s + evaluation_s)} by the first rollout step: {steps:,} "
                f"rollout steps of {duration(step_s)}, evaluations of {duration(evaluation_s)} in all, without "
                "consolidations"
            )


def duration(seconds: float) -> str:
    """A duration in its two largest units: 3 h 20 min, 1 min 5 s, 2.3 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h"
