"""Writes a phase's metrics to its loggers while it runs, including the run's metrics.csv."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback


class StepRecord(Callback):
    """Passes the metrics of each training step to the phase's loggers, including metrics.csv.

    It runs after all callbacks that record metrics and before the checkpoint, so that the metrics of every step before
    a checkpoint are on disk.
    """

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(dict(pl_module.step_metrics), step=batch_idx + 1)
            logger.save()
        pl_module.step_metrics.clear()
