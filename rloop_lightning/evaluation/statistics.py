"""Intervals of evaluation figures, and differences between two arms of a study.

    interval(pass_at_1)                        # [P], one run: over problems
    interval(np.stack(pass_at_1_of_seeds))     # [S, P], several seeds: over seeds and problems
    difference(rloop, dapo).verdict            # "better", "worse" or "inconclusive"

`values` hold one number per problem, such as its unbiased pass@k; record_values.py reads them from the records of a
run. docs/statistics.md shows how often each interval covers the truth in simulated studies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rloop_lightning.evaluation.resampling import (
    bca_bounds,
    bootstrap_means,
    by_set,
    crossed_half_width,
    hierarchical_means,
    seed_means,
)

Method = Literal["bootstrap over problems", "crossed t", "hierarchical bootstrap", "equal values", "none"]

RESAMPLES = 9_999
BOOTSTRAP_SEEDS = 30  # percentiles of a bootstrap over fewer seeds are too close together
SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

    Args:
        estimate: mean over problems, on average over sets, and over seeds where there are several.
        low: lower end; NaN where a set has one problem only.
        high: upper end; NaN where a set has one problem only.
        over: what the interval generalises to. "problems": other problems like these, the trained policies given.
            "seeds and problems": other problems, and other runs with the same settings.
        method: how the ends were computed.
        seeds: number of seeds; of the smaller arm in a difference.
        problems: number of problems.
        level: nominal coverage.
    """

    estimate: float
    low: float
    high: float
    over: Literal["problems", "seeds and problems"]
    method: Method
    seeds: int
    problems: int
    level: float

    def __str__(self) -> str:
        """For a table: `0.283 [0.251, 0.316]`."""
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Difference:
    """First arm minus second arm.

    Args:
        interval: of the difference.
        paired_seeds: whether the two arms were compared seed by seed.
        higher_is_better: whether a positive difference is in favour of the first arm.
    """

    interval: Interval
    paired_seeds: bool
    higher_is_better: bool = True

    @property
    def verdict(self) -> Literal["better", "worse", "inconclusive"]:
        """What the interval says of the first arm. Inconclusive if the interval contains 0 or has no ends."""
        if self.interval.low > 0:
            return "better" if self.higher_is_better else "worse"
        if self.interval.high < 0:
            return "worse" if self.higher_is_better else "better"
        return "inconclusive"


def interval(
    values: np.ndarray,
    *,
    sets: Sequence[int] = (),
    support: tuple[float, float] | None = SHARE,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean of `values` with a confidence interval.

    One run: BCa bootstrap over problems. 2 to 29 seeds: t-interval with seeds and problems as crossed random effects.
    30 seeds and more: percentile interval of the hierarchical bootstrap. Interval ends stay inside `support`.

    Args:
        values: [P] for one run, or [S, P] for S seeds on the same problems, in the same order.
        sets: number of problems of each set, in the order of `values`, if they are of several: the estimate is then the
            average over sets, where each counts the same. The sets are given, their problems are samples.
        support: the least and the greatest possible value; None if there is none. If all values are equal, the spread
            says nothing: a share then gets the exact bound (all zero: 1 - (alpha / 2)^(1 / P)), other values none.
        level: nominal coverage.
        seed: seed of the bootstrap draws.

    Raises:
        ValueError: the array is empty, has another number of dimensions or a value that is not finite or outside
            `support`, `sets` are not its problems, or `level` is not in (0, 1).
    """
    return _interval([_checked(values, support)], sets, support, level, seed)


def difference(
    first: np.ndarray,
    second: np.ndarray,
    *,
    paired_seeds: bool = True,
    higher_is_better: bool = True,
    sets: Sequence[int] = (),
    support: tuple[float, float] | None = SHARE,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """The difference between two arms, evaluated on the same problems, with a confidence interval.

    Problems are always paired. Seeds are paired if `paired_seeds`: row s of both arms is then the same seed. If one arm
    has a single seed, the interval is over problems alone, since the spread over that arm's seeds is unknown.

    Args:
        first: [P] or [S, P].
        second: [P] or [S', P], the same problems in the same order; S' = S for paired seeds.
        paired_seeds: whether equal rows are equal seeds.
        higher_is_better: whether a positive difference is in favour of the first arm.
        sets: as for `interval`.
        support: as for `interval`, of the values of one arm.
        level: nominal coverage.
        seed: seed of the bootstrap draws.

    Raises:
        ValueError: as `interval`; the arms differ in their number of problems, or of seeds although these are paired.
    """
    arms = [_checked(values, support) for values in (first, second)]
    (seeds, problems), (other_seeds, other_problems) = arms[0].shape, arms[1].shape
    if problems != other_problems:
        raise ValueError(f"the two arms must have the same problems, got {problems} and {other_problems}")
    if paired_seeds and seeds != other_seeds:
        raise ValueError(f"paired seeds need as many in both arms, got {seeds} and {other_seeds}")
    if min(seeds, other_seeds) == 1:
        arms = [(arms[0].mean(axis=0) - arms[1].mean(axis=0))[None]]
    elif paired_seeds:
        arms = [arms[0] - arms[1]]
    else:
        arms = [arms[0], -arms[1]]  # estimates are sums over arms
    span = None if support is None else (support[0] - support[1], support[1] - support[0])
    return Difference(_interval(arms, sets, span, level, seed), paired_seeds, higher_is_better)


def _interval(
    arms: Sequence[np.ndarray], sets: Sequence[int], support: tuple[float, float] | None, level: float, seed: int
) -> Interval:
    """The interval of the sum of the arms' figures."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    seeds, problems = min(len(arm) for arm in arms), arms[0].shape[1]
    if sets and (min(sets) < 1 or sum(sets) != problems):
        raise ValueError(f"the problems of the sets must be all {problems}, got {list(sets)}")
    estimate = float(sum(seed_means(arm, sets).mean() for arm in arms))
    method, low, high = _ends(arms, sets, estimate, support, level, np.random.default_rng(seed))
    if support is not None:
        low, high = np.clip([low, high], *support).tolist()
    over: Literal["problems", "seeds and problems"] = "problems" if seeds == 1 else "seeds and problems"
    return Interval(estimate, low, high, over, method, seeds, problems, level)


def _ends(
    arms: Sequence[np.ndarray],
    sets: Sequence[int],
    estimate: float,
    support: tuple[float, float] | None,
    level: float,
    rng: np.random.Generator,
) -> tuple[Method, float, float]:
    sizes = [of_set.shape[1] for of_set in by_set(arms[0], sets)]
    if min(sizes) == 1:
        return "none", np.nan, np.nan
    if all(np.ptp(of_set) == 0 for arm in arms for of_set in by_set(arm, sets)):
        if support is None:
            return "none", np.nan, np.nan
        # If a share u of a set's problems had other values, all P would be equal with probability (1 - u)^P.
        unseen = 1 - ((1 - level) / 2) ** (1 / np.array(sizes))
        means = np.sum([[of_set.mean() for of_set in by_set(arm, sets)] for arm in arms], axis=0)
        low, high = (float(np.mean(means + unseen * (end - means))) for end in support)
        return "equal values", low, high
    seeds = min(len(arm) for arm in arms)
    if seeds == 1:
        values = arms[0][0]
        means = bootstrap_means(values, RESAMPLES, rng, sets)
        return "bootstrap over problems", *bca_bounds(values, means, level, sets)
    if seeds < BOOTSTRAP_SEEDS:
        half = crossed_half_width(arms, level, sets)
        return "crossed t", estimate - half, estimate + half
    figures = hierarchical_means(arms, RESAMPLES, rng, sets)
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return "hierarchical bootstrap", low, high


def _checked(values: np.ndarray, support: tuple[float, float] | None) -> np.ndarray:
    """Values as an arm [S, P] in float64."""
    arm = np.asarray(values, dtype=np.float64)
    if arm.ndim not in (1, 2) or not arm.size:
        raise ValueError(f"values must be [problems] or [seeds, problems], got an array of shape {list(arm.shape)}")
    if not np.isfinite(arm).all():
        raise ValueError("values must be finite numbers; leave out the problems without a value in all arms")
    if support is not None and not (support[0] <= arm.min() and arm.max() <= support[1]):
        raise ValueError(
            f"values must be in {list(support)}, got {arm.min():g} to {arm.max():g}; pass support=None if they have "
            "no limits"
        )
    return np.atleast_2d(arm)
