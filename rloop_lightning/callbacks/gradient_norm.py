"""Gradient norm: measured before clipping at every optimizer step, and acted on when it explodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn


@dataclass(frozen=True)
class GradientConfig:
    """What is done about gradients that explode. Norms are global L2 norms before clipping.

    Args:
        warn_above: warn once a phase when the norm exceeds this; null never warns.
        stop_above: skip the optimizer step and end the phase when the norm exceeds this; null never stops.
        stop_on_nonfinite: end the phase on a gradient that is NaN or infinite; its optimizer step is skipped anyway.
    """

    warn_above: float | None = 50.0
    stop_above: float | None = None
    stop_on_nonfinite: bool = True

    def __post_init__(self) -> None:
        problems = [
            f"--gradient.{name} must be > 0 or null, got {value}"
            for name, value in (("warn_above", self.warn_above), ("stop_above", self.stop_above))
            if value is not None and not value > 0
        ]
        if problems:
            raise ValueError("\n".join(problems))


class GradientNormMonitor(L.Callback):
    """Logs `grad/norm_preclip`, the mean over a training step's updates, its `..._max`, and `grad/skipped_updates`."""

    def __init__(self, config: GradientConfig) -> None:
        self.config = config
        self._norms: list[float] = []
        self._skipped = 0
        self._warned = False

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if math.isfinite(norm):
            self._norms.append(norm)
        too_large = self.config.stop_above is not None and norm > self.config.stop_above
        if math.isfinite(norm) and not too_large:
            if self.config.warn_above is not None and norm > self.config.warn_above and not self._warned:
                self._warned = True
                rank_zero_warn(
                    f"gradient norm {norm:.3g} exceeds --gradient.warn_above {self.config.warn_above:g} in optimizer "
                    f"step {trainer.global_step + 1} of this phase (said once a phase; see grad/norm_preclip_max)"
                )
            return
        self._skipped += 1
        optimizer.zero_grad(set_to_none=True)  # a parameter without a gradient is not stepped
        stops = too_large or self.config.stop_on_nonfinite
        trainer.should_stop = trainer.should_stop or stops
        rank_zero_warn(
            f"gradient norm {norm:.3g} in optimizer step {trainer.global_step + 1} of this phase: the step is skipped"
            + (" and the phase ends here (--gradient.stop_above, --gradient.stop_on_nonfinite)" if stops else "")
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        metrics = {"grad/skipped_updates": float(self._skipped)}
        if self._norms:
            metrics["grad/norm_preclip"] = sum(self._norms) / len(self._norms)
            metrics["grad/norm_preclip_max"] = max(self._norms)
        pl_module.record(metrics)
        self._norms.clear()
        self._skipped = 0
