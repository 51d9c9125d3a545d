"""What the metrics of a phase show over its steps: totals, a fall of the success rate, and changes in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Steps = Sequence[Mapping[str, Any]]
"""The metrics of each training step of a phase, in order, with its number under `step`. A step may lack a metric."""

# A fall is a success rate below this share of what it was before ...
_FALLEN_TO = 0.2
# ... which chance does not explain: standard errors between the two rates.
_STANDARD_ERRORS = 3.0
_FEWEST_SUCCESSES = 5
# Rollouts that make a rate reliable; the last steps are taken together until they have as many.
_ENOUGH_ROLLOUTS = 64
# A gradient norm or loss this many times its median shows that training got out of hand.
_OUT_OF_HAND = 10.0
# Changes below this factor are not worth telling.
_WORTH_TELLING = 2.0

_TOLD = {
    "success rate": "rollout/success_rate",
    "loss": "train/loss",
    "gradient norm": "grad/norm_preclip_max",
    "entropy": "policy/entropy_nats",
    "completion length": "rollout/length_tokens",
    "truncated share": "rollout/truncated_rate",
    "KL divergence between engine and trainer": "policy/engine_kl_nats",
}


@dataclass(frozen=True)
class Fall:
    """A lasting deterioration.

    Args:
        before: the metrics of the step at which the policy was best.
        last_good: the last training step before the deterioration.
    """

    before: Mapping[str, Any]
    last_good: int


def rollouts_in(steps: Steps) -> int:
    """The number of rollouts generated in the steps."""
    return int(total(steps, "rollout/generated_rollouts"))


def total(steps: Steps, name: str, *, weights: str | None = None) -> float:
    """The sum of a metric over the steps that have it, each value times the step's `weights` metric."""
    return sum(step[name] * (step[weights] if weights else 1) for step in steps if name in step)


def success_rate(steps: Steps) -> float:
    """The success rate over all rollouts of the steps; 0 without rollouts."""
    return total(steps, "rollout/success_rate", weights="rollout/generated_rollouts") / max(rollouts_in(steps), 1)


def fall(steps: Steps) -> Fall | None:
    """A fall of the success rate to a small share of its best, which lasts to the end; None if there is none."""
    rated = [step for step in steps if "rollout/success_rate" in step]
    recent = 1
    while recent < len(rated) and rollouts_in(rated[-recent:]) < _ENOUGH_ROLLOUTS:
        recent += 1
    earlier, last = rated[:-recent], rated[-recent:]
    if not earlier:
        return None
    best = max(earlier, key=_successes_rate)
    before, now = _rate(best), success_rate(last)
    error = math.sqrt(before * (1 - before) / rollouts_in([best]) + now * (1 - now) / rollouts_in(last))
    certain = before - now >= _STANDARD_ERRORS * error and before * rollouts_in([best]) >= _FEWEST_SUCCESSES
    if now > _FALLEN_TO * before or not certain:
        return None
    good = [step["step"] for step in earlier if _rate(step) >= before / 2]
    return Fall(best, good[-1])


def surge(steps: Steps) -> Fall | None:
    """A gradient norm or loss that got far above its median; None if there is none.

    The median is over the steps where it is not 0: a step whose groups are all right or all wrong has no gradient.
    """
    for name in ("grad/norm_preclip_max", "train/loss"):
        known = [step for step in steps if name in step]
        sizes = sorted(size for step in known if (size := abs(step[name])) > 0)
        usual = sizes[len(sizes) // 2] if sizes else 0.0
        for before, step in pairwise(known):
            if not step[name] <= _OUT_OF_HAND * usual:  # or NaN
                return Fall(before, before["step"])
    return None


def changes(steps: Steps, since: Mapping[str, Any] | None = None) -> str:
    """How the metrics changed from a step (default: the first) to the last one, in words; empty for a single step.

    The gradient norm is the largest in between.
    """
    start = next((place for place, step in enumerate(steps) if step is since), 0)
    seen = steps[start:]
    if len(seen) < 2:
        return ""
    told: list[str] = []
    for title, name in _TOLD.items():
        values = [step[name] for step in seen if name in step]
        if len(values) < 2 or (title == "loss" and told):  # the loss of an exploration says little
            continue
        first, last = values[0], max(values[1:]) if title == "gradient norm" else values[-1]
        factor = max(abs(first), abs(last)) / max(min(abs(first), abs(last)), 1e-3)
        if title == "success rate" or math.isnan(last) or factor >= _WORTH_TELLING:
            verb = "rose" if last > first else "fell"
            told.append(f"the {title} {verb} from {first:.3g} to {last:.3g}")
    return f"from step {seen[0]['step']} to step {seen[-1]['step']}, {', '.join(told)}" if told else ""


def _rate(step: Mapping[str, Any]) -> float:
    return float(step["rollout/success_rate"])


def _successes_rate(step: Mapping[str, Any]) -> float:
    """The success rate minus one standard error, so that a step of few rollouts does not count as the best by luck."""
    rate = _rate(step)
    return rate - math.sqrt(rate * (1 - rate) / max(rollouts_in([step]), 1))
