"""Pictures of a run's pools: similarity between steps, coverage, where expert sets came from, rollouts a problem."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.errors import DamagedError
from rloop_lightning.run.report.pictures import Bars, Heat, Lines, Series
from rloop_lightning.run.report.pool_totals import PoolTotals
from rloop_lightning.run.report.samples import Samples
from rloop_lightning.run.report.stored import ReportedRun
from rloop_lightning.run.report.training import STEPS, round_marks
from rloop_lightning.run.state import Stage
from rloop_lightning.system.terminal import one_line

_MOST_ROUNDS = 6
_MOST_BARS = 16
_RATE_BINS = 5
_STEP_BINS = 12


def similarity(samples: Samples) -> Heat | None:
    """Similarity of rollouts of the same problem, between parts of the run."""
    values = samples.similarity
    if not np.isfinite(values).any():
        return None
    names = [f"{low}" if low == high else f"{low}-{high}" for low, high in samples.parts]
    first, last = values[0, 0], values[-1, -1]
    across = values[0, -1]
    told = [
        f"{what} {value:.2f}"
        for what, value in (("within the first steps", first), ("within the last", last), ("between them", across))
        if np.isfinite(value)
    ]
    caption = (
        "Mean Jaccard similarity of the 4-grams of tokens of two rollouts of the same problem, drawn at random from "
        f"two parts of the run: {', '.join(told)}. A strong diagonal is a policy that repeats itself; pale cells away "
        "from it are policies that solve problems in different ways."
    )
    return Heat(
        "similarity",
        "Similarity between rollout steps",
        caption,
        "rollout steps",
        "rollout steps",
        names,
        names,
        values,
        low=float(np.nanmin(values)),
        high=max(float(np.nanmin(values)) + 0.01, float(np.nanmax(values))),
    )


def coverage(run: ReportedRun, totals: PoolTotals) -> Lines | None:
    """Problems seen, ever solved in the pool, and solved at their last visit."""
    if not totals.coverage:
        return None
    place, seen, ever, now = np.array(totals.coverage, dtype=float).T
    caption = (
        f"Of {int(seen[-1]):,} training problems that were sampled, {int(ever[-1]):,} were solved at least once, and "
        f"{int(now[-1]):,} when they were last sampled. The {int(ever[-1] - now[-1]):,} in between are what the pool "
        "keeps and the policy of the last steps did not show."
    )
    curves = [("sampled", 7, seen), ("ever solved", 1, ever), ("solved when last sampled", 0, now)]
    series = [Series(name, colour, [np.column_stack([place, values])]) for name, colour, values in curves]
    return Lines(
        "coverage", "Coverage of the training problems", caption, STEPS, "problems", series, round_marks(run), zero=True
    )


def expert_origins(run: ReportedRun, totals: PoolTotals) -> Iterator[Heat]:
    """Where each round's expert set came from: rollouts by step and by the success rate of their problem.

    Raises:
        DamagedError: an expert set can't be read; the message names it.
    """
    if not totals.index:  # nothing tells the success rates
        return
    rounds = [stage.round for stage in run.done if stage.phase == "consolidate"]
    for number in rounds[-_MOST_ROUNDS:]:
        path = run.folder.expert_set(Stage(number, "consolidate"))
        if not path.exists():
            continue
        try:
            table = pq.read_table(path, columns=["problem_id", "rollout_step"])
        except (OSError, pa.ArrowException) as error:
            raise DamagedError(f"{path} is not an expert set, or damaged ({one_line(str(error))})") from error
        if len(table):
            yield _origin(run, totals, number, table)


def _origin(run: ReportedRun, totals: PoolTotals, number: int, table: pa.Table) -> Heat:
    over_run = run.setting("filter", "rate_over") == "run"
    rollouts, successes = totals.counts(range(number + 1) if over_run else range(number, number + 1))
    problems = np.array([totals.index.get(name, -1) for name in table["problem_id"].to_pylist()])
    known = problems >= 0
    rates = successes[problems[known]] / np.maximum(rollouts[problems[known]], 1)
    steps = table["rollout_step"].to_numpy()[known] + 1
    limit = run.setting("filter", "max_success_rate", 1.0) if run.setting("filter", "enabled", True) else 1.0
    control = run.setting("filter", "control", "none") == "random"
    top = float(limit) if isinstance(limit, int | float) and not control else 1.0
    rate_edges = np.linspace(0, max(top, float(rates.max()) if len(rates) else 0), _RATE_BINS + 1)
    last = max(run.explorations.get(number, 0), int(steps.max()) if len(steps) else 1)
    step_edges = np.unique(np.linspace(0, last, min(_STEP_BINS, last) + 1).round())
    counts, _, _ = np.histogram2d(rates, steps, [rate_edges, step_edges + 0.5])
    kinds = len(set(problems[known].tolist()))
    half = float((steps <= last / 2).mean()) if len(steps) else 0.0
    caption = (
        f"{len(table):,} rollouts of {kinds:,} problems; {half:.0%} of them were sampled in the first half of the "
        "exploration."
    )
    columns = [_range(int(low) + 1, int(high)) for low, high in itertools.pairwise(step_edges)]
    rows = [f"{100 * low:.3g}-{100 * high:.3g} %" for low, high in itertools.pairwise(rate_edges)]
    return Heat(
        f"origin-{number + 1}",
        f"Expert set of round {number + 1}",
        caption,
        "rollout steps of the round",
        "success rate",
        columns,
        rows[::-1],
        counts[::-1],
        high=max(1.0, float(counts.max())),
        digits=0,
    )


def rollouts_a_problem(totals: PoolTotals) -> Bars | None:
    """How many problems have how many rollouts in the pools of the run."""
    rollouts, _ = totals.counts(totals.rounds)
    if not len(rollouts):
        return None
    width = max(1, int(np.ceil((rollouts.max() + 1) / _MOST_BARS)))
    bins = rollouts // width
    counts = np.bincount(bins)
    first = int(np.flatnonzero(counts)[0])
    names = [_range(place * width, (place + 1) * width - 1) for place in range(first, len(counts))]
    caption = (
        f"{len(rollouts):,} problems have {int(np.median(rollouts)):,} rollouts in the median, at least "
        f"{int(rollouts.min()):,} and at most {int(rollouts.max()):,}. A problem of n rollouts has no success rate "
        "between 0 and 1/n."
    )
    return Bars(
        "rollouts",
        "Rollouts a problem",
        caption,
        "rollouts of a problem",
        "problems",
        names,
        [("problems", 0, counts[first:])],
    )


def success_rates(run: ReportedRun, totals: PoolTotals) -> Bars | None:
    """How many problems have which success rate in the newest pool."""
    if not totals.rounds:
        return None
    rollouts, successes = totals.counts(totals.rounds[-1:])
    rates = successes[rollouts > 0] / rollouts[rollouts > 0]
    limit = run.setting("filter", "max_success_rate") if run.has_expert_sets else None
    inner = sorted({0.25, 0.5, 0.75, *([float(limit)] if isinstance(limit, int | float) and limit < 1 else [])})
    edges = [0.0, *inner, 1.0]
    names, counts = ["never"], [int((rates == 0).sum())]
    for low, high in itertools.pairwise(edges):
        names.append(f"{100 * low:.3g}-{100 * high:.3g} %")
        counts.append(int(((rates >= low if low else rates > 0) & (rates < high)).sum()))
    names.append("always")
    counts.append(int((rates == 1).sum()))
    caption = f"In round {totals.rounds[-1] + 1}, {counts[0]:,} problems were never solved and {counts[-1]:,} always."
    if isinstance(limit, int | float):
        hard = int(((rates > 0) & (rates < limit)).sum())
        caption += f" {hard:,} were solved, but in less than {100 * limit:.3g} % of their rollouts."
    return Bars(
        "rates",
        "Success rates of the problems",
        caption,
        "success rate",
        "problems",
        names,
        [("problems", 0, np.array(counts))],
    )


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
