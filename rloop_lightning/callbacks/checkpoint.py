"""The checkpoints of a phase, which a killed or stopped run resumes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Checkpoint

from rloop_lightning.system.files import atomic_path
from rloop_lightning.system.signals import StopSignals

_KEPT = 2
"""Checkpoints of a phase: the newest, and one to fall back on should it be damaged."""


class PhaseCheckpoint(Checkpoint):
    """Keeps the two newest checkpoints of a phase, `step-000050.ckpt`, whole at every moment.

    None is saved after the last training step: the loop saves the policy itself then. Nor after one that ended the
    phase early: resumed from there, the phase would go on. After a signal, one is saved and the run stops. Weights that
    are not finite are a fault, after whichever step: nothing is generated with them, and they are not saved.

    Args:
        folder: where checkpoints go.
        every_n_steps: training steps between checkpoints; 0 saves none, and a killed phase begins anew.
        signals: that stop the run.
    """

    def __init__(self, folder: Path, every_n_steps: int, signals: StopSignals | None = None) -> None:
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.signals = signals or StopSignals()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.policy.check_finite()
        step = batch_idx + 1
        is_due = self.every_n_steps > 0 and step % self.every_n_steps == 0
        if step == trainer.num_training_batches or trainer.should_stop or not (is_due or self.signals.noted):
            return
        path = self.folder / f"step-{step:06d}.ckpt"
        with atomic_path(path) as partial:
            trainer.save_checkpoint(partial)
        for older in checkpoints(self.folder)[:-_KEPT]:
            older.unlink()
        self.signals.check(f"the checkpoint {path} is saved")


def checkpoints(folder: Path) -> list[Path]:
    """A phase's checkpoints, oldest first."""
    return sorted(folder.glob("step-*.ckpt"))


def checkpoint_step(path: Path) -> int:
    """How many training steps a checkpoint has behind it."""
    return int(path.stem.removeprefix("step-"))
