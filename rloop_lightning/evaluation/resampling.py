"""What intervals are computed with: Student's t, the variance over seeds and problems, and bootstrap means.

An arm is an array [S, P]: S seeds (runs) in rows, P problems in columns. The seeds of an arm share its problems. If the
problems are of several sets, `sets` holds the number of each, in the order of the columns. The figure is then the
average over sets of the means over problems. The sets are given; the problems of each are a sample.
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


def by_set(values: np.ndarray, sets: Sequence[int]) -> list[np.ndarray]:
    """The problems of each set of values [..., P]."""
    return np.split(values, np.cumsum(sets, dtype=int)[:-1], axis=-1)


def seed_means(arm: np.ndarray, sets: Sequence[int] = ()) -> np.ndarray:
    """The figure of each seed [S]: the average over sets of the mean over the set's problems."""
    return np.mean([of_set.mean(axis=-1) for of_set in by_set(arm, sets)], axis=0)


def bootstrap_means(
    values: np.ndarray, resamples: int, rng: np.random.Generator, sets: Sequence[int] = ()
) -> np.ndarray:
    """Figures [resamples] of bootstrap samples of the values [P], drawn with replacement within each set."""
    means = [
        np.concatenate([of_set[drawn].mean(axis=1) for drawn in _draws(len(of_set), resamples, rng)])
        for of_set in by_set(values, sets)
    ]
    return np.mean(means, axis=0)


def hierarchical_means(
    arms: Sequence[np.ndarray], resamples: int, rng: np.random.Generator, sets: Sequence[int] = ()
) -> np.ndarray:
    """Sums over arms of the figures of hierarchical bootstrap samples: each draws the arms' seeds, then problems.

    All seeds and arms take the same draw of problems, because they were evaluated on the same problems. What is drawn
    are effects: of a seed, its mean minus the arm's mean, and of a problem likewise. They are scaled to the variances
    s_a and p of `crossed_half_width` (reflation, 10.1111/1467-9876.00415). Drawing rows and columns of the values as
    they are (the pigeonhole bootstrap, 10.1214/07-AOAS122) counts the residual variance three times, so that
    intervals are too long where seeds differ little.

    Args: arms, each [S, P], with the same P, S >= 2 and P >= 2. Returns [resamples].
    """
    seed_parts, _, problem_part = _variances(arms, sets)
    figures = [seed_means(arm, sets) for arm in arms]
    total = np.full(resamples, sum(figure.mean() for figure in figures))
    for figure, part in zip(figures, seed_parts, strict=True):
        total += bootstrap_means(_scaled(figure, part), resamples, rng)
    of_problems = np.sum([arm.mean(axis=0) for arm in arms], axis=0)
    return total + bootstrap_means(_scaled(of_problems, problem_part, sets), resamples, rng, sets)


def bca_bounds(values: np.ndarray, means: np.ndarray, level: float, sets: Sequence[int] = ()) -> tuple[float, float]:
    """Bias-corrected and accelerated bounds (10.1080/01621459.1987.10478410) for the figure of values [P].

    The acceleration is sum u^3 / (6 (sum u^2)^1.5), with u the influence of a problem: its deviation from the mean of
    its set, divided by the set's number of problems. For one set it is the skewness of the mean divided by 6.

    Args: means, the bootstrap means [resamples].
    """
    estimate = seed_means(values, sets)
    influence = np.concatenate([(of_set - of_set.mean()) / len(of_set) for of_set in by_set(values, sets)])
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    # A mean that equals the estimate counts half: with few distinct values many do.
    below = np.mean(means < estimate) + np.mean(means == estimate) / 2
    bias = _NORMAL.inv_cdf(float(np.clip(below, 1 / len(means), 1 - 1 / len(means))))
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + _NORMAL.inv_cdf(tail)
        ends.append(_NORMAL.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def crossed_half_width(arms: Sequence[np.ndarray], level: float, sets: Sequence[int] = ()) -> float:
    """Half the width of a t-interval for the sum of the arms' figures, with crossed random effects: seeds and problems.

        s   = sum_a s_a,  s_a = Var_s(figure of seed s in arm a) / S_a                        df f
        r   = sum_a r_a,  r_a = sum_i R_ai / P_i / n^2 / S_a                                  df g
        p   = max(0, sum_i Var_q(sum over arms of q's mean) / P_i / n^2 - r)                  df P - n
        f   = s^2 / sum_a (s_a^2 / (S_a - 1)), rounded down to tenths (Welch); S - 1 for one arm
        half width = (max(t_f s, t_g r) + t_{P-n} p) / sqrt(max(s, r) + p)

    i is one of n sets. Var is the sample variance, R_ai the residual mean square of arm a in set i after its seed and
    problem means, t a quantile of Student's t. The variance s + p is that of readers and cases in diagnostic imaging
    (10.1002/sim.2532); s already holds the residual variance, so p has it subtracted. The weighted quantile is Cochran
    and Cox's for two variances that are not equal: with two to four seeds, Satterthwaite's degrees of freedom for s + p
    are estimated so badly that intervals are too short. The figures of two or three seeds may tie by chance. Then r
    stands for s: the variance that residuals alone give, with g = (P - n) times the fewest S_a - 1 degrees of freedom.

    Args: arms, each [S, P], with S >= 2 and two problems or more in each set.
    """
    seed_parts, residual_part, problem_part = _variances(arms, sets)
    probability = (1 + level) / 2
    seeds, df = min(map(len, arms)), arms[0].shape[1] - max(1, len(sets))
    seed_part = sum(seed_parts)
    seed_width = t_quantile(probability, (seeds - 1) * df) * residual_part
    if seed_part > 0:
        squares = sum(part**2 / (len(arm) - 1) for part, arm in zip(seed_parts, arms, strict=True))
        seed_df = math.floor(10 * seed_part**2 / squares + 1e-6) / 10
        seed_width = max(seed_width, t_quantile(probability, seed_df) * seed_part)
    width = seed_width + t_quantile(probability, df) * problem_part
    variance = max(seed_part, residual_part) + problem_part
    return width / variance**0.5 if variance > 0 else 0.0


def _variances(arms: Sequence[np.ndarray], sets: Sequence[int]) -> tuple[list[float], float, float]:
    """s_a of each arm, r and p, as in `crossed_half_width`."""
    seed_parts = [float(seed_means(arm, sets).var(ddof=1)) / len(arm) for arm in arms]
    residuals = [[_residual_mean_square(of_set) / len(arm) for of_set in by_set(arm, sets)] for arm in arms]
    residual_part = sum(_of_average(of_arm, arm, sets) for of_arm, arm in zip(residuals, arms, strict=True))
    of_problems = np.sum([arm.mean(axis=0) for arm in arms], axis=0)
    spread = _of_average([float(of_set.var(ddof=1)) for of_set in by_set(of_problems, sets)], of_problems, sets)
    return seed_parts, residual_part, max(0.0, spread - residual_part)


def _of_average(variances: Sequence[float], values: np.ndarray, sets: Sequence[int]) -> float:
    """The variance of the average over sets, from that of a problem in each set of values [..., P]."""
    sizes = [of_set.shape[-1] for of_set in by_set(values, sets)]
    return sum(variance / size for variance, size in zip(variances, sizes, strict=True)) / len(sizes) ** 2


def _scaled(means: np.ndarray, variance: float, sets: Sequence[int] = ()) -> np.ndarray:
    """Effects whose bootstrap means have this variance."""
    by_sets = [of_set - of_set.mean() for of_set in by_set(means, sets)]
    spread = _of_average([float(of_set.var()) for of_set in by_sets], means, sets)
    effects = np.concatenate(by_sets)
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
