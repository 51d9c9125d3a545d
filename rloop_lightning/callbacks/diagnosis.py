"""Why a phase fails, in words and numbers: from the metrics of its training steps to a cause and options that help.

    found = diagnose(rows_of_metrics_csv, Phase(flag="--algo", lr=0.01, max_new_tokens=64))
    found.cause         # "the policy diverged: from step 3 to step 7 the success rate fell from 0.31 to 0 ..."
    found.at_resume     # ("--algo.lr 1e-04",)

The rules are in order: the first one that holds names the cause. They read metrics only, so a resumed run finds the
same cause as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rloop_lightning.callbacks.findings import Diagnosis, Phase
from rloop_lightning.callbacks.rollout_faults import always_right, no_gradient, no_success, nothing_ends, too_few_groups
from rloop_lightning.callbacks.trends import Steps
from rloop_lightning.callbacks.update_faults import diverged, ended_by_gradient, not_finite, unchanged


def diagnose(steps: Steps, phase: Phase) -> Diagnosis | None:
    """The cause of a phase's failure; None if its metrics show none.

    Args:
        steps: the metrics of each training step, with its number under `step`, in order.
        phase: what else is known.
    """
    for rule in _RULES:
        if found := rule(steps, phase):
            return found
    return None


def first_step_faults(metrics: Mapping[str, float], phase: Phase) -> list[Diagnosis]:
    """Why the first rollout step of a run gives nothing to learn from; empty if it gives something.

    Args:
        metrics: the metrics of the step.
    """
    steps = [metrics]
    found = [nothing_ends(steps, phase), no_success(steps, phase), always_right(steps, phase)]
    return list(dict.fromkeys(one for one in found if one is not None))


_RULES: tuple[Callable[[Steps, Phase], Diagnosis | None], ...] = (
    not_finite,
    unchanged,
    ended_by_gradient,
    diverged,
    no_success,
    too_few_groups,
    no_gradient,
)
