"""Plots of a run's training: reward_and_pass.png, gradient_norm.png, entropy.png.

    write_plots(read_metrics(run / "metrics.csv"), run / "plots")

Rows of the phase `explore` contain the training curves, with steps from 1, and evaluations in between. Rows of the
phase `evaluate` contain evaluations between phases: step 0 for the base policy, 1 for the explored policy, 2 for the
consolidated policy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rloop_lightning.run.figures import BLUE, GREEN, GREY, VERMILION, add_legend, label, new_figure, save_figure
from rloop_lightning.run.metrics_csv import PASS_AT_K

Row = Mapping[str, Any]

_MOST_ROUND_LABELS = 12


@dataclass(frozen=True)
class _Curve:
    """One metric's points in one round, at rollout steps counted over the whole run."""

    x: np.ndarray  # [S]
    y: np.ndarray  # [S]


def write_plots(rows: Sequence[Row], folder: Path, names: Iterable[str] | None = None) -> list[Path]:
    """Write the plots that have a curve in `rows`, each atomically, and return their paths.

    Args:
        rows: rows from `read_metrics`.
        folder: created if missing.
        names: the plots to write, among `PLOTS`; None writes all.
    """
    timeline = Timeline(rows)
    written = []
    for name in PLOTS if names is None else names:
        if (figure := PLOTS[name](timeline)) is not None:
            save_figure(figure, Path(folder) / name)
            written.append(Path(folder) / name)
    return written


class Timeline:
    """The run's rows on one axis: rollout steps counted over all rounds."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.rounds = sorted({row["round"] for row in rows if row["phase"] == "explore"})
        steps = {
            number: max(row["step"] for row in rows if (row["round"], row["phase"]) == (number, "explore"))
            for number in self.rounds
        }
        self.starts: dict[int, int] = {}  # rollout steps before the round
        self.end = 0
        for number in self.rounds:
            self.starts[number] = self.end
            self.end += steps[number]
        self._steps = steps

    def training(self, metric: str) -> list[_Curve]:
        """The metric during exploration, one curve per round."""
        return self._curves(metric, {"explore"})

    def evaluations(self, metric: str) -> list[_Curve]:
        """The metric of every evaluated policy. Each curve starts at its round's initial policy."""
        return self._curves(metric, {"explore", "evaluate"})

    def _curves(self, metric: str, phases: set[str]) -> list[_Curve]:
        points: dict[int, dict[int, float]] = {}
        for row in self.rows:
            value = row.get(metric)
            if row["phase"] in phases and row["round"] in self.starts and value is not None and math.isfinite(value):
                number, x = self._place(row)
                points.setdefault(number, {})[x] = value
        return [
            _Curve(np.array(sorted(curve)), np.array([curve[x] for x in sorted(curve)]))
            for _, curve in sorted(points.items())
        ]

    def _place(self, row: Row) -> tuple[int, int]:
        """The round of the row's curve, and the row's position on the axis."""
        number, step = row["round"], row["step"]
        if row["phase"] == "explore":
            return number, self.starts[number] + step
        if step >= 2:  # the consolidated policy is the next round's initial policy
            return number + 1, self.starts[number] + self._steps[number]
        return number, self.starts[number] + step * self._steps[number]

    def eval_metrics(self) -> list[str]:
        """pass@k on the test set, or else on the first evaluated set, for the smallest and the largest k."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        passes = [match for name in names if (match := PASS_AT_K.fullmatch(name))]
        if not passes:
            return []
        sets = [match["set"] for match in passes]
        chosen = sorted(
            (match for match in passes if match["set"] == ("test" if "test" in sets else sets[0])),
            key=lambda match: int(match["k"]),
        )
        return list(dict.fromkeys(match[0] for match in (chosen[0], chosen[-1])))


def reward_and_pass(timeline: Timeline) -> Figure | None:
    rewards = timeline.training("rollout/reward_mean")
    evaluations = {name: timeline.evaluations(name) for name in timeline.eval_metrics()}
    if not rewards and not any(evaluations.values()):
        return None
    figure, axes = _figure(timeline, "mean reward, pass@k")
    _draw(axes, rewards, "training reward, smoothed", BLUE)
    for (name, curves), colour, marker in zip(evaluations.items(), (GREEN, VERMILION), ("o", "s"), strict=False):
        _draw_evaluations(axes, curves, _in_words(name), colour, marker)
    add_legend(figure, axes)
    return figure


def training_curve(timeline: Timeline, metric: str, y_label: str, colour: str, log: bool = False) -> Figure | None:
    curves = timeline.training(metric)
    if not curves:
        return None
    figure, axes = _figure(timeline, y_label)
    if log:
        axes.set_yscale("log")
    _draw(axes, curves, "smoothed", colour, log=log)
    add_legend(figure, axes)
    return figure


def _gradient_norm(timeline: Timeline) -> Figure | None:
    return training_curve(timeline, "grad/norm_preclip_max", "gradient norm before clipping", VERMILION, log=True)


def _entropy(timeline: Timeline) -> Figure | None:
    return training_curve(timeline, "policy/entropy_nats", "policy entropy (nats)", BLUE)


PLOTS: Mapping[str, Callable[[Timeline], Figure | None]] = {
    "reward_and_pass.png": reward_and_pass,
    "gradient_norm.png": _gradient_norm,
    "entropy.png": _entropy,
}
"""The plots by file name. A plot without data is None."""


def _figure(timeline: Timeline, y_label: str) -> tuple[Figure, Axes]:
    """A figure with labelled axes and marked rounds."""
    figure, (axes,) = new_figure()
    axes.set_xlabel("rollout steps, over all rounds", fontsize=12)
    axes.set_ylabel(y_label, fontsize=12)
    axes.set_xlim(0, max(timeline.end, 1) * 1.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    top = axes.get_xaxis_transform()  # x in data coordinates, y in axes coordinates
    every = math.ceil(len(timeline.starts) / _MOST_ROUND_LABELS)
    for place, (number, start) in enumerate(timeline.starts.items()):
        if start > 0:
            axes.axvline(start, color=GREY, linestyle="--", linewidth=1)
        if len(timeline.starts) > 1 and place % every == 0:
            word = "round " if place == 0 or len(timeline.starts) <= _MOST_ROUND_LABELS // 2 else ""
            axes.text(start, 1.01, f" {word}{number + 1}", transform=top, fontsize=11, color=GREY)
    return figure, axes


def _draw(axes: Axes, curves: Sequence[_Curve], mean_label: str, colour: str, log: bool = False) -> None:
    """Plot each raw curve faintly with a smoothed line over it. Rounds are not joined."""
    for number, curve in enumerate(curves):
        marker = "." if len(curve.x) == 1 else None  # a single point has no line
        raw, mean = (None, None) if number else ("each rollout step", mean_label)
        axes.plot(curve.x, curve.y, color=colour, alpha=0.25, linewidth=1, label=raw)
        axes.plot(curve.x, smoothed(curve.y, log), color=colour, linewidth=2, marker=marker, label=mean)


def _draw_evaluations(axes: Axes, curves: Sequence[_Curve], name: str, colour: str, marker: str) -> None:
    """Plot each curve with markers, and a dotted line from the end of one round to the start of the next."""
    for number, curve in enumerate(curves):
        (line,) = axes.plot(curve.x, curve.y, color=colour, linewidth=1.5, label=None if number else label(name))
        line.set(marker=marker, markersize=5, clip_on=False)
    for before, after in itertools.pairwise(curves):
        if before.x[-1] == after.x[0]:
            axes.plot(
                [before.x[-1], after.x[0]], [before.y[-1], after.y[0]], color=colour, linestyle=":", linewidth=1.5
            )


def smoothed(y: np.ndarray, log: bool) -> np.ndarray:
    """Smooth by a bell-shaped window, a fifth of the curve wide and cut off at the ends; with `log`, the logarithm."""
    window = np.hanning(2 * (len(y) // 10) + 3)
    values = np.log(np.maximum(y, np.finfo(float).tiny)) if log else y
    mean = _convolve(values, window) / _convolve(np.ones(len(y)), window)
    return np.exp(mean) if log else mean


def _convolve(values: np.ndarray, window: np.ndarray) -> np.ndarray:
    margin = len(window) // 2
    return np.convolve(values, window)[margin : margin + len(values)]


def _in_words(metric: str) -> str:
    """The set and the name of an evaluation metric."""
    return metric.removeprefix("eval/").replace("/", " ")
