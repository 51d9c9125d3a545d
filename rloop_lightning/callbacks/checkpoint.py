"""The checkpoints of a phase. A killed or stopped run resumes from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint

from rloop_lightning.model.on_ranks import on_ranks
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.files import atomic_path
from rloop_lightning.system.ranks import ALONE, Ranks
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.types import RolloutBatch, RolloutStep

_NAME = re.compile(r"step-(\d{6,})\.ckpt")
_KEPT = 2
"""Checkpoints kept per phase: the newest, and a fallback in case it is damaged."""


class PhaseCheckpoint(Checkpoint):
    """Keeps the two newest checkpoints of a phase, `step-000050.ckpt`. Each appears whole or not at all.

    No checkpoint is saved after the last training step, because the loop then saves the policy. None is saved after a
    step that ended the phase early, because a resume would continue the phase. After a signal, it saves a checkpoint
    and stops the run. Weights or logits that are not finite raise an error after any step, before they are saved or
    generate rollouts. So a resume never starts from them.

    `earlier_s` is the wall-clock time that the phase took, in earlier processes, up to the checkpoint that it goes on
    from, in seconds.

    Args:
        folder: folder of the checkpoints.
        every_n_steps: training steps between checkpoints; 0 saves none, and a killed phase restarts.
        signals: the signals that stop the run.
        before_saving: called with the path of a checkpoint before it is saved, such as to tell other processes.
        saved: called when a checkpoint is on disk.
        ranks: the processes that train together.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int,
        signals: StopSignals | None = None,
        before_saving: Callable[[Path], None] = lambda path: None,
        saved: Callable[[], None] = lambda: None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.folder = folder
        self.saved = saved
        self.every_n_steps = every_n_steps
        self.signals = signals or StopSignals()
        self.before_saving = before_saving
        self.ranks = ranks
        self.earlier_s = 0.0
        self._began = perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.earlier_s + perf_counter() - self._began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier_s = state_dict["seconds"]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        on_ranks(self.ranks, pl_module.policy, Policy.check_finite)
        row = _first_row(batch.batch if isinstance(batch, RolloutStep) else batch)
        with trainer.precision_plugin.forward_context():
            on_ranks(self.ranks, pl_module.policy, Policy.check_logprobs, row)
        step = batch_idx + 1
        is_due = self.every_n_steps > 0 and step % self.every_n_steps == 0
        if step == trainer.num_training_batches or trainer.should_stop or not (is_due or self.signals.noted):
            return
        path = self.folder / f"step-{step:06d}.ckpt"
        with atomic_path(path) as partial:
            self.before_saving(partial)
            trainer.save_checkpoint(partial)
        for older in checkpoints(self.folder)[:-_KEPT]:
            older.unlink()
        self.saved()
        self.signals.check(f"the checkpoint {path} is saved")


def _first_row(batch: RolloutBatch) -> RolloutBatch:
    """One row is enough to find logits that are not finite, and costs little."""
    return replace(batch.select(torch.zeros(1, dtype=torch.int64)), routed_experts=None, old_routed_experts=None)


def checkpoints(folder: Path) -> list[Path]:
    """A phase's checkpoints, oldest first. Files of other names are not a run's."""
    return sorted((path for path in folder.glob("*.ckpt") if _NAME.fullmatch(path.name)), key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The number of training steps done at a checkpoint."""
    return int(path.stem.removeprefix("step-"))
