"""The figures of an evaluation with their intervals, for results.json, and its tables.

    policy_results("test", evaluation, ks=(1, 8))       a policy's figures on a set
    evaluation_tables(results, about)                   Markdown, one table per set

Intervals are over the problems of a set (statistics.py): they hold for these policies, not for others of the same
algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rloop_lightning.evaluation.evaluator import SetEvaluation
from rloop_lightning.evaluation.pass_at_k import pass_at_k
from rloop_lightning.evaluation.statistics import SHARE, Interval, interval
from rloop_lightning.system.markdown import MISSING, escaped, table

_ENDS = ("estimate", "low", "high")
_LENGTH, _TRUNCATED = "length_tokens", "truncated_rate"


def policy_results(name: str, evaluation: SetEvaluation, ks: Sequence[int]) -> dict[str, Any]:
    """A policy's figures on a set as JSON values.

    Args:
        name: the set.
        evaluation: of the policy on this set.
        ks: the values of k for pass@k; pass@1 is always there.
    """
    rows = evaluation.problems.sort_by("problem_id")  # as record_values.py, so that the intervals are the same
    samples = int(rows["samples"][0].as_py())
    successes = torch.tensor(rows["successes"].to_pylist())
    values = {f"pass@{k}": (pass_at_k(successes, samples, k).numpy(), SHARE) for k in sorted({1, *ks})}
    intervals = {figure: interval(found, support=support) for figure, (found, support) in values.items()}
    intervals[_LENGTH] = interval(rows["length_mean"].to_numpy(), support=None)
    intervals[_TRUNCATED] = interval(rows["truncated"].to_numpy() / samples)
    metrics = {key.removeprefix(f"eval/{name}/"): _number(value) for key, value in evaluation.metrics.items()}
    return {
        "problems": len(rows),
        "solved": int(np.count_nonzero(rows["successes"].to_numpy())),
        "metrics": metrics,
        "intervals": {figure: interval_values(found) for figure, found in intervals.items()},
    }


def evaluation_tables(results: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """One Markdown table per set, which also reads well as plain text, and a line on how it came about.

    Args:
        results: of each policy, in order: `name`, `max_new_tokens` and the `policy_results` of its `sets`.
        about: `samples`, `temperature`, `top_k`, `top_p` and `seed` of the evaluation.
    """
    lines = []
    for name in dict.fromkeys(name for one in results for name in one["sets"]):
        found = {one["name"]: one["sets"][name] for one in results if name in one["sets"]}
        figures = [figure for figure in next(iter(found.values()))["intervals"] if figure not in (_LENGTH, _TRUNCATED)]
        sizes = sorted({one["problems"] for one in found.values()})
        count = " or ".join(f"{size:,}" for size in sizes)
        lines += [f"**{escaped(name)}**, {count} problem{'' if sizes == [1] else 's'}", ""]
        rows = [
            [
                escaped(policy),
                *(with_interval(one["intervals"][figure], 3) for figure in figures),
                with_interval(one["intervals"][_LENGTH], 1),
                with_interval(one["intervals"][_TRUNCATED], 3),
            ]
            for policy, one in found.items()
        ]
        lines += [table(["policy", *figures, "length, tokens", "truncated"], rows), ""]
    return "\n".join([*lines, _how(results, about)]) + "\n"


def _how(results: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    how = "greedy" if about["temperature"] == 0 else f"temperature {about['temperature']:g}"
    how += f", top-k {about['top_k']}" if about["top_k"] else ""
    how += f", top-p {about['top_p']:g}" if about["top_p"] < 1 else ""
    count = "one rollout" if about["samples"] == 1 else f"{about['samples']} rollouts"
    limits = sorted({one["max_new_tokens"] for one in results})
    limit = " or ".join(f"{one:,}" for one in limits) + (" (by policy)" if len(limits) > 1 else "")
    return (
        f"{count[0].upper()}{count[1:]} per problem, {how}, at most {limit} new tokens, seed {about['seed']}.\n"
        "In brackets: 95% intervals over the problems of the set, for the policies as they are."
    )


def interval_values(found: Interval) -> dict[str, Any]:
    """An interval as JSON values."""
    return {
        "estimate": _number(found.estimate),
        "low": _number(found.low),
        "high": _number(found.high),
        "level": found.level,
        "over": found.over,
        "method": found.method,
    }


def with_interval(found: Mapping[str, Any], digits: int, *, signed: bool = False) -> str:
    """A cell of a table: `0.283 [0.251, 0.316]`.

    Args:
        found: `interval_values`.
        digits: after the point.
        signed: whether positive numbers have a sign.
    """
    form = f"{'+' if signed else ''},.{digits}f"
    estimate, low, high = (MISSING if found[end] is None else format(found[end], form) for end in _ENDS)
    return f"{estimate} [{low}, {high}]"


def _number(value: float) -> float | None:
    """A number that JSON can hold."""
    return float(value) if math.isfinite(value) else None
