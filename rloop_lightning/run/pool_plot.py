"""The plot of a round's pool: how many rollouts the problems have, and how often they are solved.

write_pool_plot(count_rollouts(pool), run / "plots" / "round-0-pool.png", title="round 1", max_success_rate=0.1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rloop_lightning.run.figures import BLUE, ORANGE, VERMILION, add_legend, new_figure, save_figure

_MOST_BARS = 24
_RATES = (0.25, 0.5, 0.75)
"""Where the bars of success rates part, besides the filter's threshold."""


def write_pool_plot(counts: pa.Table, path: Path, *, title: str, max_success_rate: float | None) -> None:
    """Write the plot, atomically.

    Args:
        counts: `rollouts` and `successes` of each of one or more problems, from `count_rollouts`.
        path: the PNG file.
        title: which round it is.
        max_success_rate: the threshold of the hard-problem filter; None if the run has no such filter.
    """
    save_figure(pool_figure(counts, title=title, max_success_rate=max_success_rate), path)


def pool_figure(counts: pa.Table, *, title: str, max_success_rate: float | None) -> Figure:
    """See `write_pool_plot`."""
    rollouts, successes = counts["rollouts"].to_numpy(), counts["successes"].to_numpy()
    rates = successes / rollouts
    figure, (left, right) = new_figure(2)
    _success_rates(right, rates, max_success_rate)
    headline = f"{title}, problems: {len(rollouts):,}"
    if max_success_rate is None:
        _rollouts(left, rollouts, {"all": (BLUE, np.ones(len(rollouts), bool))})
    else:
        # A hard problem has 0 < rate < threshold, and the lowest rate above 0 is 1 / rollouts.
        enough, hard = 1 / rollouts < max_success_rate, (rates > 0) & (rates < max_success_rate)
        _rollouts(
            left, rollouts, {"enough rollouts for the filter": (BLUE, enough), "too few rollouts": (ORANGE, ~enough)}
        )
        add_legend(figure, left)
        headline += (
            f"; with enough rollouts for the filter: {int(enough.sum()):,}; solved, but in less than "
            f"{_percent(max_success_rate)}: {int(hard.sum()):,}"
        )
    figure.suptitle(headline, fontsize=12)
    return figure


def _rollouts(axes: Axes, rollouts: np.ndarray, kinds: Mapping[str, tuple[str, np.ndarray]]) -> None:
    """How many problems have how many rollouts: a bar for each number, or for each range of equal width.

    Args:
        rollouts: [problems].
        kinds: colour and mask [problems] by label.
    """
    values = np.unique(rollouts)
    if len(values) <= _MOST_BARS:
        places, bar = np.unique(rollouts, return_inverse=True)
        width = np.diff(values).min() if len(values) > 1 else max(values[0] / 10, 1)
    else:
        width = math.ceil((values[-1] + 1) / _MOST_BARS)
        places, bar = np.unique(rollouts // width * width + (width - 1) / 2, return_inverse=True)
    bottom = np.zeros(len(places))
    for name, (colour, mask) in kinds.items():
        heights = np.bincount(bar[mask], minlength=len(places))
        axes.bar(places, heights, 0.8 * width, bottom, color=colour, label=name)
        bottom += heights
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.05 * bottom.max())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _named(axes, "rollouts of a problem")


def _success_rates(axes: Axes, rates: np.ndarray, max_success_rate: float | None) -> None:
    """How many problems have which success rate, those that pass the filter in colour."""
    threshold = [] if max_success_rate is None else [max_success_rate]
    edges = sorted({*(rate for rate in _RATES if rate > max(threshold, default=0)), *threshold, 1.0})
    names, heights = ["never"], [int((rates == 0).sum())]
    for low, high in zip([0.0, *edges], edges, strict=False):
        inside = (rates >= low if low else rates > 0) & (rates < high)
        names.append(f"{100 * low:.3g} to\n{_percent(high)}" if low else f"below\n{_percent(high)}")
        heights.append(int(inside.sum()))
    names.append("always")
    heights.append(int((rates == 1).sum()))
    bars = axes.bar(range(len(names)), heights, color=_colours(len(names), hard=bool(threshold)))
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=10)
    axes.set_xticks(range(len(names)), names, fontsize=10)
    _named(axes, "solved")


def _colours(bars: int, *, hard: bool) -> Sequence[str]:
    """The second bar is that of the hard problems."""
    return [VERMILION if hard and number == 1 else BLUE for number in range(bars)]


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def _named(axes: Axes, x_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=12)
    axes.set_ylabel("problems", fontsize=12)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
