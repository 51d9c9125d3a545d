"""How long a phase will still take, from the measured times of its steps and evaluations."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

# Steps of one phase take ever longer or shorter, as completions change their length and groups are rejected.
_RECENT_STEPS = 10


@dataclass
class Extra:
    """Something that a phase does every few steps, in addition to training.

    Args:
        title: what it is, such as "evaluation".
        metric: the step metric that holds its duration, such as `time/evaluate_s`.
        every_n_steps: steps between two; 0 is never.
        after_last_step: whether it is done after the last step of the phase too.
        seconds: its last duration; None if it is unknown.
    """

    title: str
    metric: str
    every_n_steps: int
    after_last_step: bool
    seconds: float | None = None

    def remaining(self, done: int, total: int) -> int:
        """How often it is still due, after `done` of `total` steps."""
        if not self.every_n_steps:
            return 0
        last = total if self.after_last_step else total - 1
        return max(last // self.every_n_steps - done // self.every_n_steps, 0)


class TimeLeft:
    """Estimates the time until the end of a phase.

    Args:
        total: training steps of the phase.
        done: steps done so far.
        extras: what the phase does every few steps.
    """

    def __init__(self, total: int, done: int = 0, extras: Sequence[Extra] = ()) -> None:
        self.total = total
        self.done = done
        self.extras = extras
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)

    @property
    def step_s(self) -> float | None:
        """Mean duration of the recent steps, seconds, without extras; None before the first step."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def step_done(self, seconds: float, metrics: Mapping[str, float]) -> None:
        """Note the duration of a step, extras included, and its metrics."""
        self.done += 1
        for extra in self.extras:
            if extra.metric in metrics:
                extra.seconds = metrics[extra.metric]
                seconds -= extra.seconds
        self._recent.append(max(seconds, 0.0))

    def due(self) -> list[str]:
        """Titles of the extras after the current step."""
        now, then = self.done, self.done + 1
        return [one.title for one in self.extras if one.remaining(now, self.total) > one.remaining(then, self.total)]

    def text(self, elapsed: float = 0.0, share: float = 0.0) -> str:
        """The time left, such as "12:40"; "12:40+" without extras that were never measured; "?" before the first step.

        Args:
            elapsed: time since the last step was done, seconds.
            share: the share of the current step's groups that are there; 0 if it is unknown.
        """
        step = self.step_s
        steps = self.total - self.done
        if steps <= 0:
            return tqdm.format_interval(0)
        if step is None:
            return "?"
        current = max(step, elapsed / share) if share else step
        due = [(extra.remaining(self.done, self.total), extra.seconds) for extra in self.extras]
        extras = sum(count * (seconds or 0.0) for count, seconds in due)
        later = (steps - 1) * step
        left = max(current + later + extras - elapsed, later)
        unknown = any(count and seconds is None for count, seconds in due)
        return f"{tqdm.format_interval(left)}{'+' if unknown else ''}"
