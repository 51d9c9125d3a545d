"""What a phase leaves on disk while it runs: its rows in the run's metrics.csv and its loggers."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback


class StepRecord(Callback):
    """Gives the metrics of each training step to the phase's loggers, metrics.csv among them.

    Stands behind every callback that records, and before the checkpoint: what a checkpoint follows is on disk.
    """

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(dict(pl_module.step_metrics), step=batch_idx + 1)
            logger.save()
        pl_module.step_metrics.clear()
