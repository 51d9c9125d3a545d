"""What a phase leaves on disk while it runs: its rows in the run's metrics.csv, and checkpoints to resume from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, Checkpoint

from rloop_lightning.atomic import atomic_path


class StepRecord(Callback):
    """Gives the metrics of each training step to the phase's loggers, metrics.csv among them.

    Stands behind every callback that records, and before the checkpoint: what a checkpoint follows is on disk.
    """

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(dict(pl_module.step_metrics), step=batch_idx + 1)
            logger.save()
        pl_module.step_metrics.clear()


class PhaseCheckpoint(Checkpoint):
    """Keeps the newest checkpoint of a phase, `step-000050.ckpt`, whole at every moment.

    None is saved after the last training step: the loop saves the policy itself then. Nor after one that ended the
    phase early: resumed from there, the phase would go on.

    Args:
        folder: where checkpoints go.
        every_n_steps: training steps between checkpoints; 0 saves none, and a killed phase begins anew.
    """

    def __init__(self, folder: Path, every_n_steps: int) -> None:
        self.folder = folder
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = batch_idx + 1
        is_last = step == trainer.num_training_batches or trainer.should_stop
        if self.every_n_steps == 0 or step % self.every_n_steps or is_last:
            return
        path = self.folder / f"step-{step:06d}.ckpt"
        with atomic_path(path) as partial:
            trainer.save_checkpoint(partial)
        for older in checkpoints(self.folder):
            if older != path:
                older.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """A phase's checkpoints, oldest first."""
    return sorted(folder.glob("step-*.ckpt"))


def checkpoint_step(path: Path) -> int:
    """How many training steps a checkpoint has behind it."""
    return int(path.stem.removeprefix("step-"))
