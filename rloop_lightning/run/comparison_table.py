"""The comparison of a study as Markdown that also reads well as plain text, and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rloop_lightning.evaluation.record_values import AVERAGE
from rloop_lightning.run.comparison import COSTS, Comparison, Row, compare
from rloop_lightning.run.comparison_figure import Figure
from rloop_lightning.run.study import Study
from rloop_lightning.run.training_figures import LARGEST, LAST_STEPS, MEANS
from rloop_lightning.system.files import write_text
from rloop_lightning.system.markdown import MISSING, code, escaped

_COMMAND_CHARACTERS = 2000
_CSV_COLUMNS = (
    *("arm", "policy", "metric", "kind"),
    *("mean", "low", "high", "over", "method", "seeds", "problems", "verdict", "relative"),
)
_TRAINING_TITLES = {
    "rollout/reward_mean": "reward",
    "policy/entropy_nats": "entropy, nats",
    "rollout/similarity_intra_step": "similarity within a step",
    "rollout/similarity_inter_step": "between steps",
    "grad/norm_preclip_max": "largest gradient norm",
}
_FORGETTING = "/forgetting_base"
_COST_TITLES = {
    "rollout_steps": "rollout steps",
    "optimizer_steps": "optimizer steps",
    "rollouts": "rollouts",
    "tokens": "tokens",
    "seconds": "seconds",
}
_BUDGETS = {
    "rollout_steps": "equal numbers of rollouts to train on",
    "tokens": "equal numbers of generated tokens",
    "free": "not equal",
}


def write_comparison(study: Study) -> str:
    """Compare the complete cells of a study, write results.md and results.csv, and return the table."""
    comparison = compare(study)
    table = comparison_table(study, comparison)
    write_text(study.results, table)
    write_text(study.results_csv, comparison_csv(comparison))
    return table


def comparison_table(study: Study, comparison: Comparison) -> str:
    """The comparison in Markdown: pass@k for each set, differences to the first arm, training, costs, and notes."""
    reference = escaped(comparison.reference)
    sets: dict[str, list[str]] = {}
    for metric in comparison.metrics:
        name, _, k = metric.rpartition("/pass@")
        if k.isdecimal():
            sets.setdefault(name, []).append(metric)
    lines = [
        *([f"Command: {code(study.command, limit=_COMMAND_CHARACTERS)}", ""] if study.command else []),
        f"Arms: {', '.join(escaped(arm.name) for arm in study.arms)}. "
        f"Seeds: {', '.join(map(str, study.seeds))}. Budget of the arms: {_BUDGETS[study.budget]}.",
    ]
    for name, metrics in sets.items():
        metrics.sort(key=lambda metric: int(metric.rpartition("@")[2]))
        titles = [metric.rpartition("/")[2] for metric in metrics]
        rows = [
            [*_names(row, row.figures.values()), *(_cell(row.figures.get(metric)) for metric in metrics)]
            for row in comparison.rows
        ]
        of_set = f"on {escaped(name)}" if name != AVERAGE else "on average over the sets"
        lines += ["", f"pass@k {of_set}{_over(comparison.rows, metrics)}:", ""]
        lines += _table(["arm", "policy", "seeds", *titles], rows, left=2)
        compared = [row for row in comparison.rows if any(metric in row.differences for metric in metrics)]
        if compared:
            rows = []
            for row in compared:
                found = [row.differences.get(metric) for metric in metrics]
                rows.append([*_names(row, found), *map(_difference, found)])
            lines += [
                "",
                f"difference to {reference}, handed over, {of_set}, paired by seed and problem (and as a share of it):",
                "",
            ]
            lines += _table(["arm", "policy", "seeds", *titles], rows, left=2)
    lines += _training(comparison)
    lines += _costs(comparison)
    missing: dict[str, list[str]] = {}
    for cell in comparison.missing:
        missing.setdefault(escaped(cell.arm.name), []).append(str(cell.seed))
    listed = [f"- not complete: {arm}, seed {', '.join(seeds)}" for arm, seeds in missing.items()]
    listed += [f"- {escaped(note)}" for note in comparison.notes]
    return "\n".join([*lines, *([""] if listed else []), *listed]) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """Every figure as one line, with all digits. `kind` is `value`, or `difference` to the first arm's policy."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in comparison.rows:
        for metric, figure in row.figures.items():
            writer.writerow(_csv_row(row.arm, row.policy, metric, "value", figure))
            if metric in row.differences:
                writer.writerow(_csv_row(row.arm, row.policy, metric, "difference", row.differences[metric]))
    for arm, training in comparison.training.items():
        for name, figure in training.items():
            writer.writerow(_csv_row(arm, "run", name, "value", figure))
    for arm, costs in comparison.costs.items():
        for name, figure in costs.items():
            writer.writerow(_csv_row(arm, "run", f"cost/{name}", "value", figure))
    return file.getvalue()


def _csv_row(arm: str, policy: str, metric: str, what: str, figure: Figure) -> list[object]:
    ends = ["" if math.isnan(end) else repr(end) for end in (figure.low, figure.high)]
    return [
        arm,
        policy,
        metric,
        what,
        repr(figure.mean),
        *ends,
        figure.over,
        figure.method,
        figure.seeds,
        figure.problems or "",
        figure.verdict,
        "" if math.isnan(figure.relative) else repr(figure.relative),
    ]


def _names(row: Row, figures: Iterable[Figure | None]) -> list[str]:
    """The arm and the policy of a row, and the number of seeds of the figures in it."""
    seeds = max((figure.seeds for figure in figures if figure), default=0)
    return [escaped(row.arm), row.policy, str(seeds)]


def _cell(figure: Figure | None) -> str:
    return MISSING if figure is None else f"{figure.mean:.3f} {_ends(figure, '.3f')}".rstrip()


def _difference(figure: Figure | None) -> str:
    if figure is None:
        return MISSING
    relative = "" if math.isnan(figure.relative) else f" ({figure.relative:+.0%})"
    return f"{figure.mean:+.3f} {_ends(figure, '+.3f')}{relative} {figure.verdict}".rstrip()


def _ends(figure: Figure, form: str) -> str:
    return "" if math.isnan(figure.low) else f"[{figure.low:{form}}, {figure.high:{form}}]"


def _over(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """What the intervals of some metrics are over, and how they were computed."""
    figures = [row.figures[metric] for row in rows for metric in metrics if metric in row.figures]
    problems = sorted({figure.problems for figure in figures})
    methods: dict[str, set[str]] = {}
    for figure in figures:
        methods.setdefault(figure.over, set()).add(figure.method)
    over = [f"over {what} ({', '.join(sorted(used))})" for what, used in sorted(methods.items())]
    counted = f"{' or '.join(map(str, problems))} problems" if problems else ""
    return f" ({counted}), mean with its 95 % interval {', or '.join(over)}"


def _training(comparison: Comparison) -> Iterator[str]:
    """The table of how the runs trained, and of what the policies handed over have forgotten."""
    handed = {row.arm: row.figures for row in comparison.rows if row.policy == "handed over"}
    forgotten = [metric for metric in comparison.metrics if metric.endswith(_FORGETTING)]
    names = (*MEANS, LARGEST)
    figures = {
        arm: [*(handed.get(arm, {}).get(metric) for metric in forgotten), *map(training.get, names)]
        for arm, training in comparison.training.items()
    }
    rows = [
        [escaped(arm), str(max(figure.seeds for figure in found if figure)), *map(_cell, found)]
        for arm, found in figures.items()
        if any(found)
    ]
    if not rows:
        return
    titles = [f"forgotten since base, {escaped(metric.removesuffix(_FORGETTING))}" for metric in forgotten]
    yield from ("", "training, mean with its 95 % interval over seeds (Student's t):", "")
    yield from _table(["arm", "seeds", *titles, *map(_TRAINING_TITLES.__getitem__, names)], rows, left=1)
    yield ""
    yield (
        "Forgotten: the share of the problems that the base policy solves that the policy handed over does not. "
        f"Reward, entropy and similarity: means over the last {LAST_STEPS} rollout steps, of training rollouts. "
        "Gradient norm: before clipping, the largest of a run's explorations."
    )


def _costs(comparison: Comparison) -> Iterator[str]:
    """The table of what a run costs."""
    arms: Mapping[str, Mapping[str, Figure]] = {arm: costs for arm, costs in comparison.costs.items() if costs}
    if not arms:
        return
    rows = [
        [escaped(arm), str(costs["tokens"].seeds), *(_cost(costs[name]) for name in COSTS)]
        for arm, costs in arms.items()
    ]
    yield from ("", "cost of a run, mean with its 95 % interval over seeds (Student's t):", "")
    yield from _table(["arm", "seeds", *(_COST_TITLES[name] for name in COSTS)], rows, left=1)
    yield ""
    yield "Tokens and rollouts are those generated to train on; seconds include evaluations."


def _cost(figure: Figure) -> str:
    if math.isnan(figure.low) or figure.low == figure.high:
        return f"{figure.mean:,.0f}"
    return f"{figure.mean:,.0f} [{max(0.0, figure.low):,.0f}, {figure.high:,.0f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """A Markdown table.

    Args:
        left: columns that are aligned to the left; the others are numbers.
    """
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    return [text(header), text(rule), *map(text, rows)]
