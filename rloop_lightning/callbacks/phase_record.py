"""Writes a phase's metrics to its loggers while it runs, including the run's metrics.csv."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.callbacks import Callback


class StepRecord(Callback):
    """Passes the metrics of each training step on.

    It runs after all callbacks that record metrics and before the checkpoint, so that the metrics of every step before
    a checkpoint are on disk.

    Args:
        log: takes the metrics of a step, and its number in the phase, from 1.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None]) -> None:
        self._log = log

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._log(dict(pl_module.step_metrics), batch_idx + 1)
        pl_module.step_metrics.clear()


class RunSteps(Callback):
    """Makes Lightning count the steps of the run instead of the phase, for what Lightning and its callbacks log.

    It runs before all other callbacks.

    Args:
        run_step: the step of the run at step 0 of the phase.
    """

    def __init__(self, run_step: int) -> None:
        self._run_step = run_step

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._count(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.completed)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._count(trainer, batch_idx)

    def _count(self, trainer: Any, done: int) -> None:
        # Lightning has no public setting. This counter is only the step of what it logs.
        trainer.fit_loop.epoch_loop._batches_that_stepped = self._run_step + done + 1
