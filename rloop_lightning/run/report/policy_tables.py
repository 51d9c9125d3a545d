"""The tables of a run's evaluated policies: pass@k with intervals, and everything else that was measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from rloop_lightning.run.report.policies import measured_interval
from rloop_lightning.run.report.stored import EvaluatedStage, ReportedRun
from rloop_lightning.run.report.tables import Cell, Line, Table, interval_cell, number_cell
from rloop_lightning.system.terminal import one_line

INTERVALS = (
    "The intervals are 95 % confidence intervals over problems: they say what other problems like these would give for "
    "the same policy, not what another seed would give."
)

_OF_A_SET = re.compile(r"eval/(?P<set>.+)/(?P<name>[^/]+)", re.DOTALL)
_MAJORITY = re.compile(r"maj@(?P<k>\d+)")
_ENDS = ("_low", "_high")
_BESIDE = re.compile(r"(pass@\d+|maj@\d+)(_.*)?|.*_(low|high|stderr)")
"""Metrics of a set that are shown with pass@k, or belong to another one."""
_UNITS = {"_nats": ", nats per token", "_tokens": ", tokens"}
_OF_RUN: Sequence[tuple[str, str, str]] = (
    ("grad/norm_preclip_max", "largest gradient norm", ".3g"),
    ("pool/rollouts", "rollouts in the pool", ",.0f"),
    ("expert/problems_within_reach", "problems within reach", ",.0f"),
    ("expert/hard_problems", "hard problems", ",.0f"),
    ("expert/rollouts", "expert set, rollouts", ",.0f"),
)

Metrics = Mapping[str, float]


def policy_tables(run: ReportedRun) -> Iterator[Table]:
    """For each shown set, pass@k and maj@k of every policy with intervals; then what training did, and the rest."""
    for place, name in enumerate(run.sets):
        yield _success(run, name, f"policies-{place + 1}")
    columns = [column for column in _OF_RUN if any(column[0] in metrics for metrics in run.state.results.values())]
    if columns:
        caption = "Training: of the exploration before an explored policy, and of the pool before a consolidated one."
        yield _table(run, "training-table", caption, [title for _, title, _ in columns], _run_cells(columns))
    for place, name in enumerate(run.sets):
        if table := _rest(run, name, f"rest-{place + 1}"):
            yield table


def _success(run: ReportedRun, name: str, id: str) -> Table:
    """pass@k of the set for each k, and maj@k for the largest."""
    ks = run.ks(name)
    found = [int(match["k"]) for one in _names(run, name) if (match := _MAJORITY.fullmatch(one))]
    majority = [f"maj@{max(found)}"] if found else []

    def cells(policy: str, metrics: Metrics) -> list[Cell]:
        record = run.policy(policy)
        passes = [_pass_cell(record, name, k, metrics.get(f"eval/{name}/pass@{k}")) for k in ks]
        return [*passes, *(_with_ends(metrics, f"eval/{name}/{one}", ".3f") for one in majority)]

    titles = [*(f"pass@{k}" for k in ks), *majority]
    return _table(run, id, f"On {one_line(name)}: estimate and interval.", titles, cells)


def _rest(run: ReportedRun, name: str, id: str) -> Table | None:
    """The other metrics of the set, a row for each; None if there are none."""
    metrics = [one for one in _names(run, name) if not _BESIDE.fullmatch(one)]
    if not metrics:
        return None
    lines = [
        Line(
            _in_words(one),
            [_with_ends(of_policy, f"eval/{name}/{one}", _form(one)) for of_policy in run.state.results.values()],
        )
        for one in metrics
    ]
    header = ["metric", *(one_line(policy) for policy in run.state.results)]
    return Table(id, f"Everything else that was measured on {one_line(name)}", header, lines, folded=True)


def _table(
    run: ReportedRun, id: str, caption: str, titles: Sequence[str], cells: Callable[[str, Metrics], list[Cell]]
) -> Table:
    """A row for each policy that has a value."""
    lines = []
    for policy, metrics in run.state.results.items():
        found = cells(policy, metrics)
        handed_over = policy == run.state.selected
        name = f"{one_line(policy)} (handed over)" if handed_over else one_line(policy)
        if any(cell != number_cell(None) for cell in found):
            lines.append(Line(name, found, handed_over))
    return Table(id, caption, ["policy", *titles], lines)


def _run_cells(columns: Sequence[tuple[str, str, str]]) -> Callable[[str, Metrics], list[Cell]]:
    return lambda policy, metrics: [number_cell(metrics.get(name), form) for name, _, form in columns]


def _names(run: ReportedRun, name: str) -> list[str]:
    """The metrics of a set, without their prefix."""
    metrics = dict.fromkeys(metric for of_policy in run.state.results.values() for metric in of_policy)
    return [match["name"] for match in map(_OF_A_SET.fullmatch, metrics) if match and match["set"] == name]


def _pass_cell(record: EvaluatedStage | None, name: str, k: int, value: float | None) -> Cell:
    if value is None or record is None:
        return number_cell(value)
    try:
        return interval_cell(measured_interval(record, name, k))
    except ValueError:
        return Cell(number_cell(value).text, "record not readable")


def _with_ends(metrics: Metrics, metric: str, form: str) -> Cell:
    """A metric, and its interval if its ends were measured."""
    cell = number_cell(metrics.get(metric), form)
    ends = [metrics.get(metric + end) for end in _ENDS]
    if None in ends or metric not in metrics:
        return cell
    low, high = (number_cell(end, form).text for end in ends)
    return Cell(cell.text, f"[{low}, {high}]")


def _in_words(name: str) -> str:
    """The title of a metric: `length_right_tokens` is "length right, tokens"."""
    for suffix, unit in _UNITS.items():
        if name.endswith(suffix):
            return one_line(name.removesuffix(suffix).replace("_", " ")) + unit
    return one_line(name.replace("_", " "))


def _form(name: str) -> str:
    return ".1f" if name.endswith("_tokens") else ".3f"
