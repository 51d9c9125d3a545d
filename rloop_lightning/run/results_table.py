"""The results table of a run's policies.

results_table([PolicyResult("base", {"eval/test/pass@1": 0.14}), ...])  # Markdown
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rloop_lightning.run.metrics_csv import PASS_AT_K
from rloop_lightning.system.markdown import escaped
from rloop_lightning.system.terminal import one_line

_ENTROPY = re.compile(r"eval/(?P<set>.+)/entropy_nats")
_MISSING = "–"  # noqa: RUF001 - an en dash is what a table shows where there is nothing


@dataclass(frozen=True)
class PolicyResult:
    """A policy of the run and its metrics.

    Args:
        name: its name in the table, such as "round 1 explored".
        metrics: by name: `eval/SET/pass@K`, `eval/SET/entropy_nats`, `grad/norm_preclip_max`, `expert/rollouts`.
        handed_over: whether it is the run's final policy.
    """

    name: str
    metrics: Mapping[str, float]
    handed_over: bool = False


def results_table(results: Sequence[PolicyResult]) -> str:
    """The policies as a Markdown table that also reads well as plain text.

    The columns are pass@k for each evaluated set and k, entropy on the first set, the largest gradient norm before
    clipping, and for the filter the problems within its reach, the hard ones, and the size of the expert set. A column
    is left out if no policy has its metric. An en dash stands for a missing value.
    """
    columns = _columns(results)
    header = ["policy", *(title for _, title, _ in columns)]
    lines = [
        [
            f"**{result.name}** (handed over)" if result.handed_over else result.name,
            *(_cell(result.metrics.get(metric), form) for metric, _, form in columns),
        ]
        for result in results
    ]
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def text(line: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        return "| " + " | ".join([line[0].ljust(widths[0]), *numbers]) + " |"

    return "\n".join(map(text, [header, rule, *lines]))


def result_line(name: str, metrics: Mapping[str, float]) -> str:
    """One line on an evaluated policy: "round 1 explored: test pass@1 0.283, pass@32 0.573; ood pass@1 0.021"."""
    sets: dict[str, list[str]] = {}
    for match in filter(None, map(PASS_AT_K.fullmatch, metrics)):
        sets.setdefault(match["set"], []).append(f"pass@{match['k']} {_cell(metrics[match[0]], '.3f')}")
    return f"{name}: " + "; ".join(f"{one_line(set_name)} {', '.join(cells)}" for set_name, cells in sets.items())


def _columns(results: Sequence[PolicyResult]) -> list[tuple[str, str, str]]:
    """Metric, title and number format of each column."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    passes = [match for name in names if (match := PASS_AT_K.fullmatch(name))]
    sets = list(dict.fromkeys(match["set"] for match in passes))
    passes.sort(key=lambda match: (sets.index(match["set"]), int(match["k"])))
    columns = [(match[0], f"{escaped(match['set'])} pass@{match['k']}", ".3f") for match in passes]
    entropies = [match for name in names if (match := _ENTROPY.fullmatch(name))]
    columns += [(match[0], f"{escaped(match['set'])} entropy, nats", ".3f") for match in entropies[:1]]
    others = [
        ("grad/norm_preclip_max", "largest gradient norm", ".3g"),
        ("expert/problems_within_reach", "problems within reach", ",.0f"),
        ("expert/hard_problems", "hard problems", ",.0f"),
        ("expert/rollouts", "expert set", ",.0f"),
    ]
    return columns + [column for column in others if column[0] in names]


def _cell(value: float | None, form: str) -> str:
    return _MISSING if value is None or math.isnan(value) else format(value, form)
