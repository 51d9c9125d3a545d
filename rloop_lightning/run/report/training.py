"""Pictures of a run's metrics.csv: reward and pass@k, gradient norm, entropy, lengths, truncation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rloop_lightning.run.plots import smoothed
from rloop_lightning.run.report.pictures import Lines, Series
from rloop_lightning.run.report.stored import ReportedRun
from rloop_lightning.run.timeline import Curve, Timeline, positive
from rloop_lightning.system.terminal import one_line

STEPS = "rollout steps, over all rounds"
_MOST_MARKS = 12


def round_marks(run: ReportedRun) -> dict[str, float]:
    """The places where rounds begin, by label; of very many rounds, a few."""
    starts = list(run.starts.items())
    every = math.ceil(len(starts) / _MOST_MARKS) or 1
    return {f"round {number + 1}": float(start) for number, start in starts[::every]} if len(starts) > 1 else {}


def smooth_series(name: str, colour: int, curves: Sequence[np.ndarray], *, log: bool = False) -> list[Series]:
    """A metric of rollout steps: faint as it is, and smoothed before it.

    Args:
        curves: [N, 2] of each round.
    """
    smooth = [np.column_stack([curve[:, 0], smoothed(curve[:, 1], log)]) for curve in curves if len(curve)]
    return [Series(name, colour, curves, "faint"), Series(name, colour, smooth)]


def metric_curves(run: ReportedRun, metric: str) -> list[np.ndarray]:
    """A metric of rollout steps, [N, 2] for each round that has it."""
    return drawn(Timeline(run.rows).training(metric))


def evaluation_curves(run: ReportedRun, metric: str) -> list[np.ndarray]:
    """A metric of evaluated policies, [N, 2] for each round; a curve starts at its round's initial policy."""
    return drawn(Timeline(run.rows).evaluations(metric))


def drawn(curves: Sequence[Curve]) -> list[np.ndarray]:
    """The points of curves, [N, 2] each."""
    return [np.column_stack([curve.x, curve.y]) for curve in curves]


def reward_and_pass(run: ReportedRun) -> Lines | None:
    """Training reward, and pass@1 and pass@k of the shown sets."""
    series = smooth_series("training reward, smoothed", 0, metric_curves(run, "rollout/reward_mean"))
    series = series if series[0].curves else []
    told = [_from_to("the training reward", series[-1].curves)] if series else []
    colour = 1
    for name in run.sets[:2]:
        ks = run.ks(name)
        for k in dict.fromkeys((ks[0], ks[-1])):
            curves = evaluation_curves(run, f"eval/{name}/pass@{k}")
            series.append(Series(f"{one_line(name)} pass@{k}", colour, curves, "points"))
            told.append(_from_to(f"{one_line(name)} pass@{k}", curves))
            colour += 1
    if not any(one.curves for one in series):
        return None
    return Lines(
        "reward",
        "Reward, pass@1 and pass@k",
        f"{_sentence(told)} A curve of pass@k starts anew with each round's initial policy.",
        STEPS,
        "mean reward, pass@k",
        series,
        round_marks(run),
    )


def gradient_norm(run: ReportedRun) -> Lines | None:
    """The largest gradient norm of each rollout step, before clipping."""
    curves = drawn(positive(Timeline(run.rows).training("grad/norm_preclip_max")))
    if not curves:
        return None
    all_values = np.concatenate(curves)[:, 1]
    caption = (
        f"The largest norm of a step has a median of {np.median(all_values):.3g} and a maximum of "
        f"{all_values.max():.3g}. The axis is logarithmic."
    )
    return Lines(
        "gradient",
        "Gradient norm before clipping",
        caption,
        STEPS,
        "gradient norm",
        smooth_series("largest of a step, smoothed", 3, curves, log=True),
        round_marks(run),
        log=True,
    )


def entropy(run: ReportedRun) -> Lines | None:
    """Policy entropy of the training rollouts."""
    caption = "Mean over completion tokens. A policy that samples less varied completions has a lower entropy."
    return _single(run, "entropy", "Policy entropy", caption, "policy/entropy_nats", "entropy, nats", 0)


def lengths(run: ReportedRun, right: Sequence[np.ndarray], wrong: Sequence[np.ndarray]) -> Lines | None:
    """Completion length, of right and wrong rollouts apart where the pool was read.

    Args:
        right: mean length of right rollouts [N, 2] of each round, from the pool.
        wrong: the same of wrong rollouts.
    """
    series = smooth_series("all rollouts", 0, metric_curves(run, "rollout/length_tokens"))
    series += smooth_series("right rollouts", 1, right) + smooth_series("wrong rollouts", 6, wrong)
    series = [one for one in series if one.curves]
    if not series:
        return None
    told = [_from_to(f"the mean length of {one.name}", one.curves, "tokens") for one in series if one.shape == "line"]
    return Lines("lengths", "Completion length", _sentence(told), STEPS, "tokens", series, round_marks(run))


def truncation(run: ReportedRun) -> Lines | None:
    """Share of rollouts that were cut at the length limit."""
    limit = run.setting("engine", "max_new_tokens")
    caption = "Share of rollouts that reached the length limit" + (
        f" of {limit:,} tokens." if isinstance(limit, int) else "."
    )
    return _single(
        run, "truncation", "Truncated share", caption, "rollout/truncated_rate", "share of rollouts", 3, share=True
    )


def _single(
    run: ReportedRun, id: str, title: str, caption: str, metric: str, y: str, colour: int, share: bool = False
) -> Lines | None:
    curves = metric_curves(run, metric)
    if not curves:
        return None
    series = smooth_series("each rollout step, smoothed", colour, curves)
    text = f"{caption} {_sentence([_from_to('it', series[-1].curves)])}"
    return Lines(id, title, text, STEPS, y, series, round_marks(run), share=share)


def _from_to(what: str, curves: Sequence[np.ndarray], unit: str = "") -> str:
    """From the first to the last value, in words; empty without two points."""
    points = np.concatenate(curves) if curves else np.empty((0, 2))
    if len(points) < 2:
        return ""
    first, last = f"{points[0, 1]:.3g}", f"{points[-1, 1]:.3g}"
    unit = f" {unit}" if unit else ""
    if first == last:
        return f"{what} begins and ends at {first}{unit}"
    return f"{what} {'rises' if points[-1, 1] > points[0, 1] else 'falls'} from {first} to {last}{unit}"


def _sentence(told: Sequence[str]) -> str:
    text = ", ".join(filter(None, told))
    return f"{text[0].upper()}{text[1:]}." if text else ""
