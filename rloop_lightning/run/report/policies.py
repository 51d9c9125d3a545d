"""The policies of a run: the table with intervals, and the forgetting matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from rloop_lightning.evaluation.forgetting import forgetting_matrix
from rloop_lightning.evaluation.record_values import pass_at_k_difference, pass_at_k_interval
from rloop_lightning.evaluation.statistics import Difference, Interval
from rloop_lightning.run.metrics_csv import PASS_AT_K
from rloop_lightning.run.report.pictures import Heat
from rloop_lightning.run.report.stored import EvaluatedStage, ReportedRun
from rloop_lightning.run.report.tables import Cell, Line, Table, interval_cell, number_cell
from rloop_lightning.system.checksums import digest
from rloop_lightning.system.terminal import one_line

MOST_POLICIES = 24
"""Policies of a forgetting matrix."""
_MOST_SETS = 2

_OF_A_SET = re.compile(r"eval/(?P<set>.+)/(?P<name>[^/]+)", re.DOTALL)
_OF_RUN: Sequence[tuple[str, str, str]] = (
    ("grad/norm_preclip_max", "largest gradient norm", ".3g"),
    ("expert/problems_within_reach", "problems within reach", ",.0f"),
    ("expert/hard_problems", "hard problems", ",.0f"),
    ("expert/rollouts", "expert set, rollouts", ",.0f"),
)


def policies_table(run: ReportedRun) -> Table | None:
    """pass@k of every evaluated policy on the shown sets, with intervals over problems."""
    columns = [(name, k) for name in run.sets for k in run.ks(name)]
    if not columns:
        return None
    lines = []
    for policy, metrics in run.state.results.items():
        record = run.policy(policy)
        cells = [_pass_cell(record, name, k, metrics.get(f"eval/{name}/pass@{k}")) for name, k in columns]
        handed_over = policy == run.state.selected
        name = one_line(policy)
        lines.append(Line(f"{name} (handed over)" if handed_over else name, cells, handed_over))
    caption = (
        "Estimate and 95 % interval. The intervals are over problems: they say what other problems like these would "
        "give for the same policy, not what another seed would give."
    )
    return Table("policies", caption, ["policy", *(f"{one_line(name)} pass@{k}" for name, k in columns)], lines)


def further_table(run: ReportedRun) -> Table | None:
    """The other metrics of the evaluated policies."""
    results = run.state.results
    names = dict.fromkeys(name for metrics in results.values() for name in metrics)
    columns = [(name, title, form) for name in names if (title := _title(run, name)) for form in [_form(name)]]
    columns += [column for column in _OF_RUN if column[0] in names]
    if not columns:
        return None
    lines = [
        Line(
            one_line(policy),
            [number_cell(metrics.get(name), form) for name, _, form in columns],
            policy == run.state.selected,
        )
        for policy, metrics in results.items()
    ]
    caption = "Entropy in nats per token, lengths in tokens. Gradient norms and expert sets are of the phase before."
    return Table("further", caption, ["policy", *(title for _, title, _ in columns)], lines)


def forgetting(run: ReportedRun) -> Iterator[Heat]:
    """Forgetting rates between the policies of a run, on the first shown sets.

    Raises:
        ValueError: a record is damaged.
    """
    policies = run.policies
    if len(policies) > MOST_POLICIES:
        policies = [policies[int(place)] for place in np.linspace(0, len(policies) - 1, MOST_POLICIES).round()]
    if len(policies) > 1:
        for name in run.sets[:_MOST_SETS]:
            yield _forgetting(name, policies, f"forgetting-{run.sets.index(name) + 1}")


def _forgetting(name: str, policies: Sequence[EvaluatedStage], id: str) -> Heat:
    names = [policy.name for policy in policies]
    rates = forgetting_matrix([policy.record for policy in policies], name)
    first, last = rates[0, -1], rates[-1, 0]
    caption = (
        f"Of the {one_line(name)} problems that the policy of the row solves in at least one rollout, the share that "
        f"the policy of the column does not solve, in percent. {_told(names, first, last)}"
    )
    return Heat(
        id,
        f"Forgetting on {one_line(name)}",
        caption,
        "fails",
        "solved by",
        names,
        names,
        rates,
        high=max(0.01, float(np.nanmax(rates)) if np.isfinite(rates).any() else 1.0),
        share=True,
    )


def measured_interval(record: EvaluatedStage, name: str, k: int) -> Interval:
    """pass@k of a policy with its interval over problems.

    Raises:
        ValueError: the record is damaged, or lacks the set.
    """
    # A run renews its report after every phase, and records of earlier phases stay as they are.
    return _interval(str(record.record), digest(record.record), name, k)


def measured_difference(first: EvaluatedStage, second: EvaluatedStage, name: str, k: int) -> Difference:
    """pass@k of the first policy minus that of the second, paired by problem.

    Raises:
        ValueError: a record is damaged, or they differ in their problems.
    """
    files = [str(one.record) for one in (first, second)]
    return _difference(*files, digest(first.record), digest(second.record), name, k)


@lru_cache(maxsize=4096)
def _interval(path: str, content: str, name: str, k: int) -> Interval:
    return pass_at_k_interval([path], name, k)


@lru_cache(maxsize=4096)
def _difference(first: str, second: str, content: str, other: str, name: str, k: int) -> Difference:
    return pass_at_k_difference({0: first}, {0: second}, name, k)


def _pass_cell(record: EvaluatedStage | None, name: str, k: int, value: float | None) -> Cell:
    if value is None or record is None:
        return number_cell(value)
    try:
        return interval_cell(measured_interval(record, name, k))
    except ValueError:
        return Cell(number_cell(value).text, "record not readable")


def _title(run: ReportedRun, metric: str) -> str:
    """The title of a metric of a shown set other than pass@k; empty for other metrics."""
    match = _OF_A_SET.fullmatch(metric)
    if not match or match["set"] not in run.sets or PASS_AT_K.fullmatch(metric) or "pass@" in match["name"]:
        return ""
    return f"{one_line(match['set'])} {match['name'].removesuffix('_nats').removesuffix('_tokens').replace('_', ' ')}"


def _form(metric: str) -> str:
    return ".1f" if metric.endswith("_tokens") else ".3f"


def _told(names: Sequence[str], first: float, last: float) -> str:
    parts = []
    if math.isfinite(first):
        parts.append(f"{names[-1]} fails {first:.0%} of what {names[0]} solves")
    if math.isfinite(last):
        parts.append(f"{names[0]} fails {last:.0%} of what {names[-1]} solves")
    text = ", and ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""
