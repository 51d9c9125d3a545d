"""What is computed from the records of a run's policies: intervals, differences, and the forgetting matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from rloop_lightning.evaluation.forgetting import forgetting_matrix
from rloop_lightning.evaluation.record_values import pass_at_k_difference, pass_at_k_interval
from rloop_lightning.evaluation.statistics import Difference, Interval
from rloop_lightning.run.report.pictures import Heat
from rloop_lightning.run.report.stored import EvaluatedStage, ReportedRun
from rloop_lightning.system.checksums import digest
from rloop_lightning.system.terminal import one_line

MOST_POLICIES = 24
"""Policies of a forgetting matrix."""
_MOST_SETS = 2


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


def _told(names: Sequence[str], first: float, last: float) -> str:
    parts = []
    if math.isfinite(first):
        parts.append(f"{names[-1]} fails {first:.0%} of what {names[0]} solves")
    if math.isfinite(last):
        parts.append(f"{names[0]} fails {last:.0%} of what {names[-1]} solves")
    text = ", and ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""
