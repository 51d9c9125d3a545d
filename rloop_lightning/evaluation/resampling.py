"""What intervals are computed with: Student's t, the variance over seeds and problems, and bootstrap means.

An arm is an array [S, P]: S seeds (runs) in rows, P problems in columns. The seeds of an arm share its problems.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from statistics import NormalDist

import mpmath
import numpy as np

_NORMAL = NormalDist()
_CHUNK = 4_000_000  # drawn indices in memory at once, 32 MB


@lru_cache(maxsize=1024)
def t_quantile(probability: float, df: float) -> float:
    """The quantile of Student's t distribution with `df` degrees of freedom, for a probability above 1/2."""
    low, high = 0.0, 1.0
    while _t_cdf(high, df) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, df) < probability else (low, middle)
    return high


def _t_cdf(t: float, df: float) -> float:
    return 1 - float(mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True)) / 2


def bootstrap_means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `resamples` bootstrap samples of the values [P], drawn with replacement. Returns [resamples]."""
    means = [values[drawn].mean(axis=1) for drawn in _draws(len(values), resamples, rng)]
    return np.concatenate(means)


def hierarchical_means(arms: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Sums over arms of the means of hierarchical bootstrap samples: each draws the arms' seeds, then problems.

    All seeds and arms take the same draw of problems, because they were evaluated on the same problems. What is drawn
    are effects: of a seed, its mean minus the arm's mean, and of a problem likewise. They are scaled to the variances
    s_a and p of `crossed_half_width` (reflation, 10.1111/1467-9876.00415). Drawing rows and columns of the values as
    they are (the pigeonhole bootstrap, 10.1214/07-AOAS122) counts the residual variance three times, so that
    intervals are too long where seeds differ little.

    Args: arms, each [S, P], with the same P, S >= 2 and P >= 2. Returns [resamples].
    """
    seed_parts, problem_part = _variances(arms)
    total = np.full(resamples, sum(arm.mean() for arm in arms))
    for arm, part in zip(arms, seed_parts, strict=True):
        total += bootstrap_means(_scaled(arm.mean(axis=1), part), resamples, rng)
    of_problems = np.sum([arm.mean(axis=0) for arm in arms], axis=0)
    return total + bootstrap_means(_scaled(of_problems, problem_part), resamples, rng)


def bca_bounds(values: np.ndarray, means: np.ndarray, level: float) -> tuple[float, float]:
    """Bias-corrected and accelerated bounds (10.1080/01621459.1987.10478410) for the mean of values [P].

    The acceleration of a mean is its skewness divided by 6: sum d^3 / (6 (sum d^2)^1.5), with d = values - mean.

    Args: means, the bootstrap means [resamples].
    """
    deviations = values - values.mean()
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    # A mean that equals the estimate counts half: with few distinct values many do.
    below = np.mean(means < values.mean()) + np.mean(means == values.mean()) / 2
    bias = _NORMAL.inv_cdf(float(np.clip(below, 1 / len(means), 1 - 1 / len(means))))
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + _NORMAL.inv_cdf(tail)
        ends.append(_NORMAL.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def crossed_half_width(arms: Sequence[np.ndarray], level: float) -> float:
    """Half the width of a t-interval for the sum of the arms' means, with seeds and problems as crossed random effects.

        s   = sum_a s_a,  s_a = Var_s(mean of seed s in arm a) / S_a                        df f
        p   = max(0, Var_q(sum over arms of q's mean) - sum_a R_a / S_a) / P                df P - 1
        f   = s^2 / sum_a (s_a^2 / (S_a - 1)), rounded down to tenths (Welch); S - 1 for one arm
        half width = (t_f s + t_{P-1} p) / sqrt(s + p)

    Var is the sample variance, R_a the residual mean square of arm a after its seed and problem means, t a quantile of
    Student's t. The variance s + p is that of readers and cases in diagnostic imaging (10.1002/sim.2532); s_a already
    holds the residual variance, so p has it subtracted. The weighted quantile is Cochran and Cox's for two variances
    that are not equal: with two to four seeds, Satterthwaite's degrees of freedom for s + p are estimated so badly
    that intervals are too short.

    Args: arms, each [S, P], with S >= 2 and P >= 2.
    """
    seed_parts, problem_part = _variances(arms)
    probability = (1 + level) / 2
    seed_part = sum(seed_parts)
    width = t_quantile(probability, arms[0].shape[1] - 1) * problem_part
    if seed_part > 0:
        squares = sum(part**2 / (len(arm) - 1) for part, arm in zip(seed_parts, arms, strict=True))
        df = math.floor(10 * seed_part**2 / squares + 1e-6) / 10
        width += t_quantile(probability, df) * seed_part
    variance = seed_part + problem_part
    return width / variance**0.5 if variance > 0 else 0.0


def _variances(arms: Sequence[np.ndarray]) -> tuple[list[float], float]:
    """s_a of each arm, and p, as in `crossed_half_width`."""
    of_problems = np.sum([arm.mean(axis=0) for arm in arms], axis=0)
    residual = sum(_residual_mean_square(arm) / len(arm) for arm in arms)
    seed_parts = [float(arm.mean(axis=1).var(ddof=1)) / len(arm) for arm in arms]
    return seed_parts, max(0.0, float(of_problems.var(ddof=1)) - residual) / arms[0].shape[1]


def _scaled(means: np.ndarray, variance: float) -> np.ndarray:
    """Effects whose bootstrap means have this variance."""
    effects = means - means.mean()
    spread = effects.var() / len(effects)
    return effects * (variance / spread) ** 0.5 if spread > 0 else effects


def _residual_mean_square(arm: np.ndarray) -> float:
    seeds, problems = arm.shape
    residuals = arm - arm.mean(axis=1, keepdims=True) - arm.mean(axis=0) + arm.mean()
    return float((residuals**2).sum() / ((seeds - 1) * (problems - 1)))


def _draws(size: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices of `resamples` samples of `size` with replacement, a bounded number of rows at a time."""
    rows = max(1, _CHUNK // size)
    for start in range(0, resamples, rows):
        yield rng.integers(size, size=(min(rows, resamples - start), size))
