"""What metrics.csv says of how a run trained: a few figures that tell a healthy run from one that collapses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rloop_lightning.run.metrics_csv import read_metrics

LAST_STEPS = 20
"""Rollout steps at the end of a run that a mean is over."""

MEANS = (
    "rollout/reward_mean",
    "policy/entropy_nats",
    "rollout/similarity_intra_step",
    "rollout/similarity_inter_step",
)
"""Metrics of training rollouts whose mean over the last rollout steps is shown."""

LARGEST = "grad/norm_preclip_max"
"""The metric whose largest value over all rollout steps is shown: the gradient norm before clipping."""


def training_figures(metrics: Path) -> Mapping[str, float]:
    """By metric, its mean over the last rollout steps that have it, or its largest value; no metric that no step has.

    Args:
        metrics: the metrics.csv of a run.

    Raises:
        MetricsError: the file is damaged.
    """
    rows = [row for row in read_metrics(metrics) if row["phase"] == "explore"]
    values = {name: np.array([row[name] for row in rows if name in row]) for name in (*MEANS, LARGEST)}
    found = {name: float(values[name][-LAST_STEPS:].mean()) for name in MEANS if len(values[name])}
    if len(values[LARGEST]):
        found[LARGEST] = float(values[LARGEST].max())
    return found
