"""Progress of a phase, also in the middle of a step: groups, tokens, what is being done, and the time left."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from rloop_lightning.callbacks.bar import Bar
from rloop_lightning.callbacks.time_left import Extra, TimeLeft
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.rollouts.listener import StreamListener
from rloop_lightning.types import RolloutStep

_SHORTEST_S = 0.2
"""Tokens per second are not told of a shorter time."""


@dataclass
class _Sampling:
    """A rollout step that is being sampled.

    Args:
        doing: what is shown of it.
        share: of its groups.
        tokens: generated for it.
        began: the time when it began.
    """

    doing: str
    share: float
    tokens: int
    began: float


class PhaseProgress(ProgressBar, StreamListener):
    """One bar over the training steps of a phase.

    A rollout step that another thread samples while the trainer updates is shown once the trainer waits for it. Only
    the main thread draws.

    Args:
        title: title of the bar, such as "round 1/3 explore".
        engine: the engine, whose tokens it counts.
        last_pass_at_1: shown until the phase measures its own pass@1; None shows none.
        extras: what the phase does every few steps, for the time left.
    """

    def __init__(
        self, title: str, engine: RolloutEngine, last_pass_at_1: float | None = None, extras: Sequence[Extra] = ()
    ) -> None:
        super().__init__()
        self.title = title
        self.engine = engine
        self.extras = extras
        self._pass_at_1 = last_pass_at_1
        self._bar: Bar | None = None
        self._enabled = True
        self._summary: list[str] = []  # of the last step
        self._rate = ""  # tokens per second of the last step
        self._doing = ""
        self._share = 0.0  # of the current step's groups
        self._tokens = 0  # of the current step
        self._updating = False
        self._updates = 0  # of the current step

    def disable(self) -> None:
        """Turn the bar off. Lightning calls this on all ranks but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        self._time = TimeLeft(int(trainer.num_training_batches), done, self.extras)
        self._step_began = self._sampling_began = perf_counter()
        self._sampling = _Sampling("", 0.0, 0, self._step_began)
        if self._enabled:
            self._bar = Bar(self.title, self._time.total, done)
            self.engine.on_progress = self.generated

    def sampling(self, *, kept: int, needed: int, drawn: int, tokens: int) -> None:
        began = perf_counter() if drawn == 0 else self._sampling.began
        self._sampling = _Sampling(f"sampling {kept}/{needed} groups of {drawn} drawn", kept / needed, tokens, began)
        if _in_main_thread():
            self.waiting()

    def waiting(self) -> None:
        sampling = self._sampling
        self._doing, self._share, self._tokens = sampling.doing, sampling.share, sampling.tokens
        self._sampling_began = sampling.began
        self._show()

    def generated(self, tokens: int, rollouts: int) -> None:
        """The engine has generated tokens: of a rollout step, or of an evaluation or capture after its updates."""
        if not _in_main_thread():
            self._sampling.tokens += tokens
            return
        if self._updating:
            self._doing, self._tokens, self._updating = " and ".join(self._time.due()), 0, False
            self._sampling_began = perf_counter()
        self._tokens += tokens
        if self._bar is not None and self._bar.is_due:
            self._show()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if isinstance(batch, RolloutStep) and batch.phase_steps:
            self._time.total = batch.phase_steps
        self._share, self._tokens, self._updates = 0.0, 0, 0
        self._doing, self._updating = "updating", True
        self._show()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._updates += 1
        self._doing = f"updating ({self._updates})"
        self._show()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = perf_counter()
        self._time.step_done(now - self._step_began, pl_module.step_metrics)
        self._step_began = now
        self._summary = self._summarise(pl_module.step_metrics)
        self._doing, self._tokens, self._updating = "", 0, False
        if self._bar is not None:
            self._bar.done += 1
        self._show()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self.engine.on_progress = None

    def _summarise(self, metrics: Mapping[str, float]) -> list[str]:
        for name, value in metrics.items():
            if name.startswith("eval/") and name.endswith("/pass@1"):
                self._pass_at_1 = value
        shown = [f"{self._time.step_s:.3g} s/step"]
        self._rate = ""
        if "rollout/reward_mean" in metrics:
            shown.append(f"reward {metrics['rollout/reward_mean']:.3f}")
        elif "train/loss" in metrics:
            shown.append(f"loss {metrics['train/loss']:.3f}")
        if "pool/hard_problems" in metrics:
            within = metrics["pool/problems_within_reach"]
            shown.append(f"{metrics['pool/hard_problems']:,.0f} hard of {within:,.0f} in reach")
        if self._pass_at_1 is not None:
            shown.append(f"pass@1 {self._pass_at_1:.3f}")
        if "rollout/generated_tokens" in metrics:
            rate = metrics["rollout/generated_tokens"] / max(metrics["time/generate_s"], 1e-9)
            self._rate = f"{rate:,.0f} tok/s"
        return shown

    def _show(self) -> None:
        if self._bar is None:
            return
        self._bar.total = self._time.total
        now = perf_counter()
        tokens = _tokens(self._tokens, now - self._sampling_began)
        # A narrow terminal cuts the end of the line: what is being done comes first.
        shown = [self._doing, tokens, *self._summary] if self._doing else [*self._summary, self._rate]
        self._bar.set(self._time.text(now - self._step_began, self._share), ", ".join(filter(None, shown)))


class EvaluationProgress:
    """One bar over the problems of an evaluation, as a context manager.

    Args:
        title: title of the bar, such as "round 1/3 evaluate explored".
        engine: the engine, whose rollouts it counts.
        problems: the number of problems by set, in order.
        samples: rollouts per problem.
    """

    def __init__(self, title: str, engine: RolloutEngine, problems: Mapping[str, int], samples: int) -> None:
        self.title = title
        self.engine = engine
        self.problems = problems
        self.samples = samples
        self._measured = 0  # problems of complete sets
        self._rollouts = 0  # of the current set
        self._tokens = 0
        self._summary: list[str] = []

    def __enter__(self) -> Self:
        self._began = perf_counter()
        self._bar = Bar(self.title, sum(self.problems.values()))
        self.engine.on_progress = self.generated
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.engine.on_progress = None
        self._bar.close()

    def generated(self, tokens: int, rollouts: int) -> None:
        """The engine has generated tokens and completed rollouts of the current set."""
        self._tokens += tokens
        self._rollouts += rollouts
        if self._bar.is_due:
            self._show()

    def measured(self, name: str, pass_at_1: float) -> None:
        """A set has been measured."""
        self._measured += self.problems[name]
        self._rollouts = 0
        self._summary = [f"{name} pass@1 {pass_at_1:.3f}"]
        self._show()

    def _show(self) -> None:
        elapsed = perf_counter() - self._began
        done = min(self._measured + self._rollouts / self.samples, sum(self.problems.values()))
        left = tqdm.format_interval(elapsed * (sum(self.problems.values()) / done - 1)) if done else "?"
        self._bar.done = int(done)
        self._bar.set(left, ", ".join([*self._summary, *filter(None, [_tokens(self._tokens, elapsed)])]))


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _tokens(count: int, seconds: float) -> str:
    """A number of tokens and their rate, if it can be told; empty for none."""
    rate = f", {count / seconds:,.0f} tok/s" if seconds > _SHORTEST_S else ""
    return f"{count:,} tokens{rate}" if count else ""
