"""A progress bar for a phase: round, reward, pass@1, tokens per second and time left."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

# A log file gets one line per minute instead of a bar that redraws itself.
_LOG_FILE_INTERVAL_S = 60.0


class PhaseProgress(ProgressBar):
    """One bar over the training steps of a phase.

    Args:
        title: title of the bar, such as "round 1/3 explore".
        last_pass_at_1: shown until the phase measures its own pass@1; None shows none.
    """

    def __init__(self, title: str, last_pass_at_1: float | None = None) -> None:
        super().__init__()
        self.title = title
        self._pass_at_1 = last_pass_at_1
        self._bar: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        """Turn the bar off. Lightning calls this on all ranks but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._bar = open_bar(
            total=int(trainer.num_training_batches),
            initial=trainer.fit_loop.epoch_loop.batch_progress.current.completed,
            title=self.title,
            disable=not self._enabled,
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self._bar is not None
        metrics = pl_module.step_metrics
        for name, value in metrics.items():
            if name.startswith("eval/") and name.endswith("/pass@1"):
                self._pass_at_1 = value
        shown = []
        if "rollout/reward_mean" in metrics:
            shown.append(f"reward {metrics['rollout/reward_mean']:.3f}")
        elif "train/loss" in metrics:
            shown.append(f"loss {metrics['train/loss']:.3f}")
        if self._pass_at_1 is not None:
            shown.append(f"pass@1 {self._pass_at_1:.3f}")
        if "rollout/generated_tokens" in metrics:
            rate = metrics["rollout/generated_tokens"] / max(metrics["time/generate_s"], 1e-9)
            shown.append(f"{rate:,.0f} tok/s")
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.update()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def open_bar(*, total: int, title: str, initial: int = 0, disable: bool = False, unit: str = "step") -> tqdm:
    """A progress bar on stderr: share done, elapsed time, remaining time, and a postfix from the caller."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=title,
        unit=unit,
        disable=disable,
        dynamic_ncols=terminal,
        mininterval=0.1 if terminal else _LOG_FILE_INTERVAL_S,
        smoothing=0.1,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    )
