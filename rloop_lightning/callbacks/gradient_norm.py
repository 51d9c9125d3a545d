"""Gradient norm: measured before clipping at every optimizer step, with actions when it or the loss explodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from rloop_lightning.model.sharding import whole
from rloop_lightning.system.fields import PositiveFloat, check_fields
from rloop_lightning.types import Rollout, RolloutBatch, RolloutStep


@dataclass(frozen=True)
class GradientConfig:
    """How to handle exploding gradients. Norms are global L2 norms before clipping.

    Args:
        warn_above: warn once per phase when the norm exceeds this; null never warns.
        stop_above: skip the optimizer step and end the phase when the norm exceeds this; null never stops.
        stop_on_nonfinite: end the phase when a loss or gradient is NaN or infinite. In any case, the optimizer step is
            skipped and its rollouts are saved in the phase's folder `faults`.
    """

    warn_above: PositiveFloat | None = 50.0
    stop_above: PositiveFloat | None = None
    stop_on_nonfinite: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "--gradient")


class SavesFaults(Protocol):
    """What saves the rollouts of a skipped update (faulty_rollouts.py)."""

    def save(
        self, module: Any, batch: RolloutBatch, rollouts: Sequence[Rollout], *, step: int, update: int
    ) -> tuple[Any, int]: ...


class GradientNormMonitor(L.Callback):
    """Logs `grad/norm_preclip`, the mean over a training step's updates, its `..._max`, and `grad/skipped_updates`.

    Args:
        config: the thresholds.
        faults: saves the rollouts of a skipped update; None saves none.
        rollouts: the rollouts that the phase trains on, if its batches are not `RolloutStep`s.
    """

    def __init__(
        self, config: GradientConfig, faults: SavesFaults | None = None, rollouts: Sequence[Rollout] = ()
    ) -> None:
        self.config = config
        self.faults = faults
        self._rollouts = rollouts
        self._step = 0
        self._updates = 0
        self._norms: list[float] = []
        self._skipped = 0
        self._warned = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._step, self._updates = batch_idx + 1, 0
        if isinstance(batch, RolloutStep):
            self._rollouts = batch.rollouts

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self._updates += 1
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        loss = pl_module.pending.loss.float()
        measured = whole(torch.nn.utils.get_total_norm(gradients)).float()
        # Both in one transfer, for a single device sync.
        norm, loss = torch.stack([measured.to(loss.device), loss]).tolist()
        if math.isfinite(norm):
            self._norms.append(norm)
        finite = math.isfinite(norm) and math.isfinite(loss)
        too_large = self.config.stop_above is not None and norm > self.config.stop_above
        if finite and not too_large:
            self._warn(norm, trainer.global_step + 1)
            return
        stops = too_large or self.config.stop_on_nonfinite
        self._skip(trainer, pl_module, f"gradient norm {norm:.3g}, loss {loss:.3g}", stops)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        metrics = {"grad/skipped_updates": float(self._skipped)}
        if self._norms:
            metrics["grad/norm_preclip"] = sum(self._norms) / len(self._norms)
            metrics["grad/norm_preclip_max"] = max(self._norms)
        pl_module.record(metrics)
        self._norms.clear()
        self._skipped = 0

    def _warn(self, norm: float, optimizer_step: int) -> None:
        if self.config.warn_above is not None and norm > self.config.warn_above and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"gradient norm {norm:.3g} exceeds --gradient.warn_above {self.config.warn_above:g} in optimizer "
                f"step {optimizer_step} of this phase (said once a phase; see grad/norm_preclip_max)"
            )

    def _skip(self, trainer: Any, pl_module: Any, what: str, stops: bool) -> None:
        self._skipped += 1
        batch = pl_module.pending.batch
        pl_module.skip_update()
        trainer.should_stop = trainer.should_stop or stops
        saved = ""
        if self.faults is not None:
            path, bad = self.faults.save(pl_module, batch, self._rollouts, step=self._step, update=self._updates)
            saved = f"; its {len(batch)} rollouts are in {path}, {bad} of them with a loss that is not finite"
        rank_zero_warn(
            f"{what} in optimizer step {trainer.global_step + 1} of this phase (training step {self._step}, update "
            f"{self._updates}): the step is skipped"
            + (" and the phase ends here (--gradient.stop_above, --gradient.stop_on_nonfinite)" if stops else "")
            + saved
        )
