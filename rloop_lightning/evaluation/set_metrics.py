"""The metrics of a policy on one set of problems, from its rollouts, with confidence intervals over problems."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from rloop_lightning.evaluation.majority import MajorityAtK, answer_classes, majority_at_k
from rloop_lightning.evaluation.outcomes import RolloutOutcomes
from rloop_lightning.evaluation.pass_at_k import PassAtK, pass_at_k
from rloop_lightning.evaluation.solved import mean_distinct_solutions
from rloop_lightning.evaluation.statistics import SHARE, interval
from rloop_lightning.rewards.base import Reward
from rloop_lightning.types import Group


def set_metrics(groups: Sequence[Group], reward: Reward, ks: Sequence[int]) -> dict[str, float]:
    """The metrics of N groups of n rollouts, by name. A metric without data is left out.

    `pass@K`, `maj@K` (of a reward that knows answers, K > 1) and `entropy_nats` have the ends of a 95 % interval over
    problems beside them, `pass@K_low` and `pass@K_high`; a set of one problem has none.

    Args:
        groups: one group per problem, scored by `reward`.
        reward: says what an answer is, for maj@k.
        ks: the values of k, each at most n. pass@1 is always measured.
    """
    groups = sorted(groups, key=lambda group: group.problem.id)  # as in pass_at_k_interval, whose draws are these
    ks = sorted({1, *ks})
    metrics = {**_pass_at_k(groups, ks), **_majority(groups, reward, ks), **_of_rollouts(groups)}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def with_bounds(
    name: str, values: np.ndarray, *, estimate: float | None = None, support: tuple[float, float] | None = SHARE
) -> dict[str, float]:
    """A metric and the ends of its interval, `NAME_low` and `NAME_high`; the ends are NaN if there is no interval.

    Args:
        name: name of the metric.
        values: one value per problem [P].
        estimate: the metric; None takes the mean of `values`.
        support: as for `interval`.
    """
    found = interval(values, support=support)
    return {
        name: found.estimate if estimate is None else estimate,
        f"{name}_low": found.low,
        f"{name}_high": found.high,
    }


def _pass_at_k(groups: Sequence[Group], ks: Sequence[int]) -> dict[str, float]:
    samples = len(groups[0].rollouts)
    successes = torch.tensor([group.success_count for group in groups])
    means = PassAtK(ks, sync_on_compute=False)
    means.update(successes, samples)
    metrics: dict[str, float] = {}
    for k, (name, mean) in zip(ks, means.compute().items(), strict=True):
        metrics |= with_bounds(name, pass_at_k(successes, samples, k).numpy(), estimate=float(mean))
    if len(groups) > 1:
        metrics["pass@1_stderr"] = float((successes / samples).double().std() / len(groups) ** 0.5)
    return metrics


def _majority(groups: Sequence[Group], reward: Reward, ks: Sequence[int]) -> dict[str, float]:
    ks = [k for k in ks if k > 1]
    classes = answer_classes(groups, reward, ks) if ks else None
    if classes is None:
        return {}
    right = np.array([[rollout.success for rollout in group.rollouts] for group in groups])
    means = MajorityAtK(ks, sync_on_compute=False)
    means.update(classes, right)
    metrics: dict[str, float] = {}
    for k, (name, mean) in zip(ks, means.compute().items(), strict=True):
        metrics |= with_bounds(name, majority_at_k(classes, right, k), estimate=float(mean))
    return metrics


def _of_rollouts(groups: Sequence[Group]) -> dict[str, float]:
    outcomes = RolloutOutcomes(sync_on_compute=False)
    outcomes.update(groups)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        **_entropy(groups),
        "length_tokens": float(np.mean([rollout.length for rollout in rollouts])),
        **{name: float(value) for name, value in outcomes.compute().items()},
        "distinct_solutions": mean_distinct_solutions(
            [rollout.problem_id for rollout in rollouts],
            [rollout.text for rollout in rollouts],
            [rollout.success for rollout in rollouts],
        ),
    }


def _entropy(groups: Sequence[Group]) -> dict[str, float]:
    """The mean surprise of sampled tokens, which estimates the entropy of the sampling distribution.

    It is a ratio of sums over problems, S / T. Its interval is that of the mean of S/T + (S_q - T_q S/T) / mean(T),
    the linearised ratio.
    """
    surprises = np.array([-sum(r.sampling_logprobs.sum(dtype=np.float64) for r in group.rollouts) for group in groups])
    tokens = np.array([sum(rollout.length for rollout in group.rollouts) for group in groups])
    mean = float(surprises.sum() / tokens.sum())
    linearised = mean + (surprises - mean * tokens) / tokens.mean()
    return with_bounds("entropy_nats", linearised, estimate=mean, support=None)
