"""The pictures of a comparison: the arms' policies by pass@1 and pass@k, and curves of the arms, of every seed faintly
and their mean in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

import numpy as np

from rloop_lightning.evaluation.record_values import pass_at_k_interval
from rloop_lightning.run.plots import smoothed
from rloop_lightning.run.report.compared import ComparedArms
from rloop_lightning.run.report.comparison_tables import main_columns
from rloop_lightning.run.report.pictures import Lines, Point, Scatter, Series, thinned
from rloop_lightning.run.report.stored import EvaluatedStage, ReportedRun
from rloop_lightning.run.report.training import STEPS, drawn
from rloop_lightning.run.timeline import Curve, Timeline, positive
from rloop_lightning.system.terminal import one_line

_MOST_POINTS = 120
"""Points of a faint curve."""
_MOST_FAINT = 40
"""Faint curves of a picture."""

_BASE = -1  # its colour
Curves = Callable[[ReportedRun], list[Curve]]

_METRICS: Sequence[tuple[str, str, str, str, bool, bool]] = (
    # id, title, metric, unit, logarithmic, from zero
    ("reward", "Training reward", "rollout/reward_mean", "mean reward", False, True),
    ("gradient", "Gradient norm before clipping", "grad/norm_preclip_max", "gradient norm", True, False),
    ("entropy", "Policy entropy", "policy/entropy_nats", "entropy, nats", False, True),
    ("lengths", "Completion length", "rollout/length_tokens", "tokens", False, True),
    ("solved", "Training problems solved in the round's pool", "pool/problems_solved", "problems", False, True),
)


def trade_offs(comparison: ComparedArms) -> list[Scatter]:
    """The policies of each arm by pass@1 and pass@k, of the average over the sets if there are several.

    Those that can't be compared are left out: the tables tell why.
    """
    columns = main_columns(comparison)
    if len(columns) < 2:
        return []
    (label, sets, first), (*_, last) = columns[0], columns[-1]

    def point(name: str, colour: int, policies: Mapping[int, EvaluatedStage], *, hollow: bool = False) -> list[Point]:
        records = [policy.record for policy in policies.values()]
        try:
            x, y = (pass_at_k_interval(records, sets, k) for k in (first, last))
        except ValueError:
            return []
        place = [(one.estimate, one.low, one.high) for one in (x, y)]
        return [Point(one_line(name), colour, place[0], place[1], hollow=hollow)]

    points = point("base", _BASE, max((arm.base for arm in comparison.arms), key=len, default={}))
    for colour, arm in enumerate(comparison.arms):
        if arm.name in comparison.judged_otherwise:
            continue
        if arm.explored != arm.final:
            points += point(f"{arm.name}, last explored", colour, arm.explored, hollow=True)
        points += point(arm.name, colour, arm.final)
    named = one_line(label)
    hollow = " A hollow mark is the last explored policy of the same runs." if any(one.hollow for one in points) else ""
    caption = (
        f"The policies that the runs hand over, and the base policy: right at the first try, and within {last} tries, "
        f"with 95 % intervals. Up and to the right is better. Differences are paired: their intervals, in the tables, "
        f"are narrower.{hollow}"
    )
    title = f"pass@{first} against pass@{last}, {named}"
    return [Scatter("trade-off-picture", title, caption, f"pass@{first}", f"pass@{last}", points)]


def training_pictures(comparison: ComparedArms) -> list[Lines]:
    """Metrics of the rollout steps that at least one run has."""
    found = []
    for id, title, metric, unit, log, zero in _METRICS:
        series = _series(comparison, partial(_training, metric=metric, log=log), log=log, smooth=True)
        if series:
            found.append(Lines(id, title, _caption(comparison, "smoothed"), STEPS, unit, series, log=log, zero=zero))
    return found


def evaluation_pictures(comparison: ComparedArms) -> list[Lines]:
    """pass@1 and pass@k of the shown sets."""
    found = []
    for place, name in enumerate(comparison.sets):
        ks = comparison.ks(name)
        for k in dict.fromkeys((ks[0], ks[-1])) if ks else ():
            metric = f"eval/{name}/pass@{k}"
            series = _series(comparison, partial(_evaluations, metric=metric), points=True)
            title = f"{one_line(name)} pass@{k}"
            caption = _caption(comparison, "a curve starts anew with each round's initial policy")
            if series:
                found.append(Lines(f"pass-{place}-{k}", title, caption, STEPS, title, series, zero=True))
    return found


def _series(
    comparison: ComparedArms, curves: Curves, *, log: bool = False, smooth: bool = False, points: bool = False
) -> list[Series]:
    many = sum(len(arm.runs) for arm in comparison.arms) > _MOST_FAINT
    found: list[Series] = []
    fronts: list[Series] = []
    for colour, arm in enumerate(comparison.arms):
        each = [parts for run in arm.runs.values() if (parts := curves(run))]
        mean = mean_curves(each)
        if not mean:
            continue
        if smooth:
            mean = [np.column_stack([curve[:, 0], smoothed(curve[:, 1], log)]) for curve in mean]
        fronts.append(Series(one_line(arm.name), colour, mean, "points" if points else "line"))
        if not many and (smooth or len(each) > 1):
            faint = [thinned(curve, _MOST_POINTS) for parts in each for curve in drawn(parts)]
            found.append(Series(one_line(arm.name), colour, faint, "faint"))
    return [*found, *fronts]


def mean_curves(each: Sequence[Sequence[Curve]]) -> list[np.ndarray]:
    """The mean of several runs' curves, [N, 2] for each round, at the steps of a round that all of the runs have.

    Rounds of different length begin at different places of the runs' axes; a point stands at the mean of its places.

    Args:
        each: of each run, its curves.
    """
    by_round = [{curve.round: curve for curve in curves} for curves in each]
    found = []
    for number in sorted(set.intersection(*(set(curves) for curves in by_round))) if by_round else ():
        parts = [curves[number] for curves in by_round]
        shared = reduce(np.intersect1d, [part.step for part in parts])
        points = [np.column_stack([part.x, part.y])[np.isin(part.step, shared)] for part in parts]
        if len(shared):
            found.append(np.mean(points, axis=0))
    return found


def _training(run: ReportedRun, *, metric: str, log: bool) -> list[Curve]:
    """A metric of rollout steps, without the values that a logarithmic axis can't show."""
    curves = Timeline(run.rows).training(metric)
    return positive(curves) if log else curves


def _evaluations(run: ReportedRun, *, metric: str) -> list[Curve]:
    """A metric of evaluated policies."""
    return Timeline(run.rows).evaluations(metric)


def _caption(comparison: ComparedArms, more: str) -> str:
    several = any(len(arm.runs) > 1 for arm in comparison.arms)
    what = "Mean over the seeds of each arm, with every seed behind it" if several else "One run of each arm"
    return f"{what}; {more}."
