"""A number of a study's arm with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rloop_lightning.evaluation.resampling import t_quantile
from rloop_lightning.evaluation.statistics import Difference, Interval

Verdict = Literal["better", "worse", "inconclusive", ""]

LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """A number of an arm with its interval.

    Args:
        mean: mean over seeds, and over problems where it is of problems.
        low: lower end; NaN if there is no interval.
        high: upper end; NaN if there is no interval.
        over: what the interval generalises to: "problems", "seeds and problems" or "seeds"; "" if there is none.
        method: how the interval was computed.
        seeds: number of seeds.
        problems: number of problems; 0 if the figure is not of problems.
        verdict: of a difference in pass@k, what the interval says; empty for other figures.
        relative: of a difference in pass@k, its mean divided by that of the first arm; NaN for other figures.
    """

    mean: float
    low: float
    high: float
    over: str
    method: str
    seeds: int
    problems: int = 0
    verdict: Verdict = ""
    relative: float = float("nan")

    @classmethod
    def of(cls, found: Interval | Difference, reference: float = float("nan")) -> Figure:
        """A figure of pass@k; with a difference, the mean of the arm that it is to."""
        interval = found.interval if isinstance(found, Difference) else found
        return cls(
            interval.estimate,
            interval.low,
            interval.high,
            interval.over,
            interval.method,
            interval.seeds,
            interval.problems,
            found.verdict if isinstance(found, Difference) else "",
            interval.estimate / reference if reference > 0 else float("nan"),
        )

    @classmethod
    def over_seeds(cls, values: Sequence[float]) -> Figure:
        """The mean of one value per seed, with Student's t interval; no interval for a single seed."""
        found = np.asarray(values, dtype=np.float64)
        mean, count = float(found.mean()), len(found)
        if count == 1:
            return cls(mean, np.nan, np.nan, "", "none", 1)
        half = t_quantile((1 + LEVEL) / 2, count - 1) * float(found.std(ddof=1)) / count**0.5
        return cls(mean, mean - half, mean + half, "seeds", "Student's t", count)
