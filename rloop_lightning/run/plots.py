"""Plots of a run's training: reward and pass@k, gradient norm, entropy, similarity, coverage, length.

write_plots(read_metrics(run / "metrics.csv"), run / "plots")
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rloop_lightning.run.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    add_legend,
    label,
    new_figure,
    save_figure,
)
from rloop_lightning.run.timeline import Curve, Row, Timeline, positive

_MOST_ROUND_LABELS = 12


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


def reward_and_pass(timeline: Timeline) -> Figure | None:
    return _plot(
        timeline,
        "mean reward, pass@k with 95 % interval",
        {"training reward, smoothed": ("rollout/reward_mean", BLUE)},
        {
            _in_words(metric): (metric, *style)
            for metric, style in zip(timeline.eval_metrics(), ((GREEN, "o"), (VERMILION, "s")), strict=False)
        },
    )


def gradient_norm(timeline: Timeline) -> Figure | None:
    metrics = {"smoothed": ("grad/norm_preclip_max", VERMILION)}
    return _plot(timeline, "gradient norm before clipping", metrics, log=True)


def entropy(timeline: Timeline) -> Figure | None:
    return _plot(timeline, "policy entropy (nats)", {"smoothed": ("policy/entropy_nats", BLUE)})


def similarity(timeline: Timeline) -> Figure | None:
    metrics = {
        "within a rollout step, smoothed": ("rollout/similarity_intra_step", BLUE),
        "with the problem's latest earlier step, smoothed": ("rollout/similarity_inter_step", ORANGE),
    }
    return _plot(timeline, "n-gram similarity of a problem's rollouts", metrics)


def coverage(timeline: Timeline) -> Figure | None:
    metrics = {
        "training, solved in the latest step, smoothed": ("pool/coverage_now", BLUE),
        "training, ever solved in the round, smoothed": ("pool/coverage_ever", GREEN),
    }
    name = timeline.shown_set
    evaluations = {f"{name}, forgotten since base": (f"eval/{name}/forgetting_base", VERMILION, "s")}
    return _plot(timeline, "share of problems, with 95 % interval", metrics, evaluations)


def length(timeline: Timeline) -> Figure | None:
    metrics = {
        "right, smoothed": ("rollout/length_right_tokens", GREEN),
        "wrong, smoothed": ("rollout/length_wrong_tokens", VERMILION),
    }
    return _plot(timeline, "mean completion length (tokens)", metrics)


PLOTS: Mapping[str, Callable[[Timeline], Figure | None]] = {
    "reward_and_pass.png": reward_and_pass,
    "gradient_norm.png": gradient_norm,
    "entropy.png": entropy,
    "similarity.png": similarity,
    "coverage.png": coverage,
    "length.png": length,
}
"""The plots by file name. A plot without data is None."""


def _plot(
    timeline: Timeline,
    y_label: str,
    training: Mapping[str, tuple[str, str]],
    evaluations: Mapping[str, tuple[str, str, str]] = MappingProxyType({}),
    *,
    log: bool = False,
) -> Figure | None:
    """A figure of training metrics as smoothed lines and of evaluations as markers; None without data.

    Args:
        timeline: the run's rows.
        y_label: label of the y axis.
        training: metric and colour by label.
        evaluations: metric, colour and marker by label.
        log: whether the y axis is logarithmic.
    """
    lines = {name: (timeline.training(metric), colour) for name, (metric, colour) in training.items()}
    if log:
        lines = {name: (positive(curves), colour) for name, (curves, colour) in lines.items()}
    points = {name: timeline.evaluations(metric) for name, (metric, _, _) in evaluations.items()}
    if not any(curves for curves, _ in lines.values()) and not any(points.values()):
        return None
    figure, axes = _figure(timeline, y_label)
    if log:
        axes.set_yscale("log")
    raw = "each rollout step"
    for name, (curves, colour) in lines.items():
        _draw(axes, curves, raw, name, colour, log=log)
        raw = ""
    for name, (metric, colour, marker) in evaluations.items():
        _draw_evaluations(axes, points[name], name, colour, marker)
        lows, highs = (timeline.evaluations(f"{metric}_{end}") for end in ("low", "high"))
        _draw_intervals(axes, lows, highs, colour)
    add_legend(figure, axes)
    return figure


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


def _draw(axes: Axes, curves: Sequence[Curve], raw_label: str, mean_label: str, colour: str, log: bool = False) -> None:
    """Plot each raw curve faintly with a smoothed line over it. Rounds are not joined."""
    for number, curve in enumerate(curves):
        marker = "." if len(curve.x) == 1 else None  # a single point has no line
        raw, mean = (None, None) if number else (raw_label or None, mean_label)
        axes.plot(curve.x, curve.y, color=colour, alpha=0.25, linewidth=1, label=raw)
        axes.plot(curve.x, smoothed(curve.y, log), color=colour, linewidth=2, marker=marker, label=mean)


def _draw_intervals(axes: Axes, lows: Sequence[Curve], highs: Sequence[Curve], colour: str) -> None:
    """Plot the intervals of evaluations as vertical bars."""
    for low, high in zip(lows, highs, strict=True):
        axes.vlines(low.x, low.y, high.y, color=colour, alpha=0.4, linewidth=1.5)


def _draw_evaluations(axes: Axes, curves: Sequence[Curve], name: str, colour: str, marker: str) -> None:
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
    """Smooth by a bell-shaped window, a fifth of the curve wide and cut off at the ends.

    Args:
        y: the values [S]; with `log`, all above 0.
        log: whether to smooth the logarithm.
    """
    window = np.hanning(2 * (len(y) // 10) + 3)
    values = np.log(y) if log else y
    mean = _convolve(values, window) / _convolve(np.ones(len(y)), window)
    return np.exp(mean) if log else mean


def _convolve(values: np.ndarray, window: np.ndarray) -> np.ndarray:
    margin = len(window) // 2
    return np.convolve(values, window)[margin : margin + len(values)]


def _in_words(metric: str) -> str:
    """The set and the name of an evaluation metric."""
    return metric.removeprefix("eval/").replace("/", " ")
