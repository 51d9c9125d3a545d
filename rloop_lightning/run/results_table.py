"""The results tables of a run's policies.

results_table([PolicyResult("base", {"eval/test/pass@1": 0.14, "eval/test/pass@1_low": 0.11, ...}), ...])  # Markdown
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rloop_lightning.run.metrics_csv import PASS_AT_K
from rloop_lightning.system.markdown import MISSING, escaped
from rloop_lightning.system.terminal import one_line

INTERVALS = (
    "[low, high] is the 95 % confidence interval over problems like these, for the policies of this run: it does not "
    "say how another seed would do. Gradient norms and counts are exact."
)
"""What the intervals of the tables are over."""

_MAJORITY = re.compile(r"eval/(?P<set>.+)/maj@(?P<k>\d+)", re.DOTALL)

_BEHAVIOUR = {
    "entropy_nats": "entropy, nats",
    "coverage_now": "solved",
    "coverage_ever": "ever solved",
    "forgetting_base": "forgotten since base",
}
"""What a set's second table shows: titles by metric."""

_OF_THE_RUN = {
    "grad/norm_preclip_max": ("largest gradient norm", ".3g"),
    "expert/problems_within_reach": ("problems within reach", ",.0f"),
    "expert/hard_problems": ("hard problems", ",.0f"),
    "expert/rollouts": ("expert set", ",.0f"),
}
"""Titles and number formats of the last table, by metric."""


@dataclass(frozen=True)
class PolicyResult:
    """A policy of the run and its metrics.

    Args:
        name: its name in the tables, such as "round 1 explored".
        metrics: by name: those of `set_metrics` and `earlier_metrics` as `eval/SET/NAME`, `grad/norm_preclip_max`,
            `expert/rollouts`.
        handed_over: whether it is the run's final policy.
    """

    name: str
    metrics: Mapping[str, float]
    handed_over: bool = False


@dataclass(frozen=True)
class _Column:
    metric: str
    title: str
    form: str = ".3f"
    interval: bool = True

    def cell(self, metrics: Mapping[str, float]) -> str:
        """The metric and the ends of its interval."""
        value = self._number(metrics, self.metric)
        if value == MISSING or not self.interval:
            return value
        low, high = (self._number(metrics, f"{self.metric}_{end}") for end in ("low", "high"))
        return f"{value} [{low}, {high}]"

    def _number(self, metrics: Mapping[str, float], name: str) -> str:
        value = metrics.get(name, math.nan)
        return MISSING if math.isnan(value) else format(value, self.form)


def results_table(results: Sequence[PolicyResult]) -> str:
    """The policies as Markdown tables that also read well as plain text.

    For each set, a table of pass@k and of maj@k at the largest k; then for each set a table of its entropy, problems
    solved, and problems forgotten; then one of the largest gradient norm before clipping and of the expert set. Cells
    have their interval over problems, such as `0.283 [0.251, 0.316]`. A column without any value is left out, and so
    is a row. An en dash stands for a missing value, such as the ends of an interval over a single problem.
    """
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    sets = list(dict.fromkeys(match["set"] for match in map(PASS_AT_K.fullmatch, names) if match))
    tables = [
        *(_success(one, names) for one in sets),
        *(_behaviour(one) for one in sets),
        [_Column(name, title, form, interval=False) for name, (title, form) in _OF_THE_RUN.items()],
    ]
    shown = ([column for column in columns if column.metric in names] for columns in tables)
    return "\n\n".join(_table(columns, results) for columns in shown if columns)


def result_line(name: str, metrics: Mapping[str, float]) -> str:
    """One line on an evaluated policy: "round 1 explored: test pass@1 0.283, pass@32 0.573; ood pass@1 0.021"."""
    sets: dict[str, list[str]] = {}
    for match in filter(None, map(PASS_AT_K.fullmatch, metrics)):
        sets.setdefault(match["set"], []).append(f"pass@{match['k']} {metrics[match[0]]:.3f}")
    return f"{name}: " + "; ".join(f"{one_line(set_name)} {', '.join(cells)}" for set_name, cells in sets.items())


def _success(name: str, metrics: Sequence[str]) -> list[_Column]:
    """pass@k of a set in ascending order of k, and maj@k at the largest k."""
    passes, majorities = (
        sorted(int(match["k"]) for match in map(pattern.fullmatch, metrics) if match and match["set"] == name)
        for pattern in (PASS_AT_K, _MAJORITY)
    )
    titles = [*(f"pass@{k}" for k in passes), *(f"maj@{k}" for k in majorities[-1:])]
    return [_Column(f"eval/{name}/{title}", f"{escaped(name)} {title}") for title in titles]


def _behaviour(name: str) -> list[_Column]:
    return [_Column(f"eval/{name}/{metric}", f"{escaped(name)} {title}") for metric, title in _BEHAVIOUR.items()]


def _table(columns: Sequence[_Column], results: Sequence[PolicyResult]) -> str:
    header = ["policy", *(column.title for column in columns)]
    lines = [
        [
            f"**{result.name}** (handed over)" if result.handed_over else result.name,
            *(column.cell(result.metrics) for column in columns),
        ]
        for result in results
        if any(column.metric in result.metrics for column in columns)
    ]
    widths = [max(len(line[place]) for line in [header, *lines]) for place in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def text(line: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        return "| " + " | ".join([line[0].ljust(widths[0]), *numbers]) + " |"

    return "\n".join(map(text, [header, rule, *lines]))
