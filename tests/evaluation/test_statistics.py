"""Intervals against simulated studies with known truth, against slow implementations, and on edge inputs."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from benchmarks.interval_coverage import SCENARIOS, coverage, crossed_t, seeds_alone
from rloop_lightning.evaluation import difference, interval
from rloop_lightning.evaluation.resampling import (
    bca_bounds,
    bootstrap_means,
    crossed_half_width,
    hierarchical_means,
    t_quantile,
)


def values(shape, seed=0):
    return np.random.default_rng(seed).random(shape)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_for_few_seeds_covers_and_the_naive_one_does_not(seeds):
    columns = [("one", "one", crossed_t), ("paired", "paired", crossed_t), ("naive", "paired", seeds_alone)]
    shares = coverage(SCENARIOS[0], seeds, k=1, studies=500, columns=columns)
    for column in ("one", "paired"):
        assert 0.925 <= shares[column] <= 0.985, column  # docs/statistics.md, and its 2.5 standard errors
    assert shares["naive"] < 0.88


@pytest.mark.parametrize("seeds", [3, 29, 30])
def test_the_public_interval_is_the_one_that_was_simulated(seeds):
    arm = values((seeds, 40))
    result = interval(arm)
    rng = np.random.default_rng(0)
    if seeds < 30:
        half = crossed_half_width([arm], 0.95)
        expected = [arm.mean() - half, arm.mean() + half]
        assert result.method == "crossed t"
    else:
        expected = np.quantile(hierarchical_means([arm], 9_999, rng), [0.025, 0.975]).tolist()
        assert result.method == "hierarchical bootstrap"
    assert [result.low, result.high] == pytest.approx(expected)
    assert result.over == "seeds and problems"
    assert (result.seeds, result.problems) == (seeds, 40)


@pytest.mark.parametrize(
    ("df", "expected"), [(1, 12.7062), (2, 4.30265), (9, 2.262157), (99, 1.984217), (4999, 1.96044)]
)
def test_quantiles_of_students_t_are_those_of_tables(df, expected):
    assert t_quantile(0.975, df) == pytest.approx(expected, rel=1e-5)


def test_the_crossed_t_interval_by_hand():
    # Seed means 0.25 and 0.75, problem means 0.25, 0.5, 0.75; residuals 0.25 (-1, 0, 1) and the reverse.
    arm = np.array([[0.0, 0.25, 0.5], [0.5, 0.75, 1.0]])
    arm += 0.25 * np.array([[-1, 0, 1], [1, 0, -1]])
    of_seeds = (0.25**2 * 2) / 2  # sample variance 0.125, over two seeds
    residual = 4 * 0.25**2 / 2
    of_problems = max(0.0, 0.0625 - residual / 2) / 3
    assert of_problems == 0
    assert crossed_half_width([arm], 0.95) == pytest.approx(12.7062 * of_seeds**0.5, rel=1e-5)
    flat = np.array([[0.0, 0.25, 0.5], [0.5, 0.75, 1.0]])  # no residual
    parts = [(0.125 / 2, 12.7062), (0.0625 / 3, 4.30265)]
    by_hand = sum(part * t for part, t in parts) / sum(part for part, _ in parts) ** 0.5
    assert crossed_half_width([flat], 0.95) == pytest.approx(by_hand, rel=1e-5)


def test_hierarchical_means_are_those_of_loops_over_seeds_and_problems():
    arms = [values((6, 30), 1), -values((5, 30), 2) - 0.3 * values((5, 1), 3)]
    fast = hierarchical_means(arms, 4_000, np.random.default_rng(0))
    variance = 0.0  # of s and p, with loops
    of_problems = [sum(arm[:, q].mean() for arm in arms) for q in range(30)]
    effects = []
    residual_part = 0.0
    for arm in arms:
        seeds, problems = arm.shape
        means = [arm[s].mean() for s in range(seeds)]
        squares = sum(
            (arm[s, q] - means[s] - arm[:, q].mean() + arm.mean()) ** 2 for s in range(seeds) for q in range(problems)
        )
        seen = sum((m - arm.mean()) ** 2 for m in means) / (seeds - 1)
        effects.append([(m - arm.mean()) * (seeds / (seeds - 1)) ** 0.5 for m in means])
        variance += seen / seeds
        residual_part += squares / (seeds - 1) / (problems - 1) / seeds
    center = np.mean(of_problems)
    spread = sum((m - center) ** 2 for m in of_problems) / 29
    kept = max(0.0, spread - residual_part)
    problem_effects = [(m - center) * (kept / spread * 30 / 29) ** 0.5 for m in of_problems]
    draw = random.Random(0)
    slow = [
        center + sum(np.mean(draw.choices(one, k=len(one))) for one in [*effects, problem_effects])
        for _ in range(4_000)
    ]
    assert fast.mean() == pytest.approx(np.mean(slow), abs=4e-3)
    assert fast.std() == pytest.approx((variance + kept / 30) ** 0.5, rel=0.04)
    assert np.quantile(fast, [0.025, 0.975]) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.012)


def test_seeds_that_tie_by_chance_do_not_make_an_interval_of_no_width():
    # The seeds' means are equal, and so are the problems' but for what the residuals explain.
    first = np.array([[0.7, 0.5, 0.5, 0.5], [0.5, 0.7, 0.5, 0.5]])
    result = difference(first, np.full((2, 4), 0.5))
    residual = 4 * 0.1**2 / 3  # squares of +-0.1 in two columns of two rows, over (2 - 1)(4 - 1) degrees of freedom
    assert result.interval.high - 0.05 == pytest.approx(3.182446 * (residual / 4 / 2) ** 0.5, rel=1e-5)
    assert result.verdict == "inconclusive"


def test_the_average_over_sets_has_the_variances_of_its_parts():
    # Seeds without a residual: the values are a seed's effect plus a problem's. The second set is easier by 0.4.
    small, large = np.array([0.1, 0.3]), np.array([0.5, 0.6, 0.7, 0.8])
    seeds = np.array([[-0.02], [0.0], [0.02]])
    arm = np.concatenate([small + seeds, large + seeds], axis=1)
    result = interval(arm, sets=[2, 4])
    assert result.estimate == pytest.approx((0.2 + 0.65) / 2)
    of_seeds, of_problems = 0.0004 / 3, (0.02 / 2 + (0.05 / 3) / 4) / 4
    half = (4.302653 * of_seeds + 2.776445 * of_problems) / (of_seeds + of_problems) ** 0.5  # 3 - 1 and 6 - 2
    assert result.high - result.estimate == pytest.approx(half, rel=1e-5)


@pytest.mark.parametrize("seeds", [1, 3, 30])
def test_how_far_sets_are_apart_is_no_spread_of_problems(seeds):
    near = np.concatenate([0.5 + 0.1 * values((seeds, 40), 1), 0.5 + 0.1 * values((seeds, 40), 2)], axis=1)
    far = near + np.repeat([-0.4, 0.3], 40)
    close, apart = interval(near, sets=[40, 40]), interval(far, sets=[40, 40])
    assert apart.high - apart.low == pytest.approx(close.high - close.low)
    assert apart.estimate == pytest.approx(close.estimate - 0.05)


def test_sets_of_other_sizes_keep_the_limits_of_a_share():
    right = interval(np.ones((3, 530)), sets=[500, 30])
    unseen = [1 - 0.025 ** (1 / size) for size in (500, 30)]
    assert (right.low, right.high) == (pytest.approx(1 - sum(unseen) / 2), 1.0)
    nearly = np.ones(530)
    nearly[[3, 505]] = 0.5
    assert interval(nearly, sets=[500, 30]).high <= 1
    assert math.isnan(interval(np.ones(5), sets=[4, 1]).low)  # the spread over the problems of one set is unknown


def test_one_run_over_sets_is_a_bootstrap_within_each_set():
    draw = np.random.default_rng(1)
    both = np.concatenate([(draw.random(200) < 0.9).astype(float), (draw.random(50) < 0.3).astype(float)])
    result = interval(both, sets=[200, 50])
    spread = (both[:200].var() / 200 + both[200:].var() / 50) ** 0.5 / 2
    assert result.high - result.low == pytest.approx(2 * 1.96 * spread, rel=0.05)


def test_the_sets_must_hold_all_problems():
    with pytest.raises(ValueError, match=r"the sets must be all 6, got \[2, 3\]"):
        interval(values(6), sets=[2, 3])


def test_bootstrap_means_have_the_spread_of_the_plug_in_variance():
    one = values(50)
    means = bootstrap_means(one, 20_000, np.random.default_rng(0))
    assert means.std() == pytest.approx(one.std() / 50**0.5, rel=0.03)


def test_bca_shifts_towards_the_long_tail():
    skewed = np.array([0.0] * 45 + [1.0] * 5)
    means = bootstrap_means(skewed, 9_999, np.random.default_rng(0))
    plain = np.quantile(means, [0.025, 0.975])
    low, high = bca_bounds(skewed, means, 0.95)
    assert plain[0] <= low
    assert plain[1] < high


def test_one_run_is_over_problems():
    result = interval(values(200))
    assert (result.over, result.method, result.seeds) == ("problems", "bootstrap over problems", 1)
    assert result.high - result.low == pytest.approx(2 * 1.96 * values(200).std() / 200**0.5, rel=0.05)
    assert interval(values((1, 200))) == result
    assert str(result) == f"{result.estimate:.3f} [{result.low:.3f}, {result.high:.3f}]"


@pytest.mark.parametrize("shape", [(50,), (35, 50)])
def test_equal_seeds_draw_equal_intervals_and_leave_global_random_state_alone(shape):
    state, torch_state, python_state = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate()
    assert interval(values(shape), seed=3) == interval(values(shape), seed=3)
    assert interval(values(shape), seed=3) != interval(values(shape), seed=4)
    assert (np.random.get_state()[1] == state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


@pytest.mark.parametrize("arms", ["paired", "unpaired"])
def test_swapped_arms_give_the_opposite_difference(arms):
    first, second = values((3, 20), 1), values((3, 20), 2)
    one, other = (
        difference(*pair, paired_seeds=arms == "paired").interval for pair in ((first, second), (second, first))
    )
    assert [one.estimate, one.low, one.high] == pytest.approx([-other.estimate, -other.high, -other.low])


def test_pairing_removes_what_seeds_and_problems_have_in_common():
    common = 0.1 + 0.3 * values((4, 1), 1) + 0.4 * values((1, 60), 2)
    better = common + 0.02 + 0.01 * values((4, 60), 3)
    paired = difference(better, common)
    assert paired.verdict == "better"
    assert difference(common, better).verdict == "worse"
    unpaired = difference(better, common, paired_seeds=False)
    assert unpaired.verdict == "inconclusive"  # the same estimate
    assert unpaired.interval.estimate == pytest.approx(paired.interval.estimate)


def test_a_lower_value_can_be_the_better_one():
    low, high = 0.2 * values((3, 50), 1), 0.5 + 0.2 * values((3, 50), 2)
    assert difference(low, high, higher_is_better=False).verdict == "better"
    assert difference(high, low, higher_is_better=False).verdict == "worse"


@pytest.mark.parametrize("shape", [(30,), (3, 30), (30, 30)])
def test_no_verdict_where_the_interval_contains_zero(shape):
    seen = set()
    for seed in range(12):
        first, second = values(shape, seed), np.clip(values(shape, 100 + seed) + 0.02 * (seed - 6), 0, 1)
        result = difference(first, second)
        crosses = result.interval.low <= 0 <= result.interval.high
        assert (result.verdict == "inconclusive") == crosses
        seen.add(result.verdict)
    assert "inconclusive" in seen


def test_an_arm_of_one_seed_leaves_the_problems_alone():
    result = difference(values(40, 1), values((5, 40), 2), paired_seeds=False).interval
    assert (result.over, result.seeds) == ("problems", 1)
    assert result.estimate == pytest.approx(values(40, 1).mean() - values((5, 40), 2).mean())


@pytest.mark.parametrize(("value", "expected"), [(0.0, (0, 0.0362)), (1.0, (1 - 0.0362, 1))])
def test_all_wrong_and_all_right_have_the_exact_bound(value, expected):
    result = interval(np.full(100, value))  # 1 - 0.025^(1/100), Clopper and Pearson's bound
    assert (result.low, result.high) == pytest.approx(expected, abs=1e-4)
    assert result.method == "equal values"
    both = difference(np.full((3, 100), value), np.full((3, 100), value))
    assert both.verdict == "inconclusive"
    assert both.interval.low < 0 < both.interval.high


def test_one_problem_has_no_interval():
    for one in (values(1), values((4, 1))):
        result = interval(one)
        assert math.isnan(result.low)
        assert math.isnan(result.high)
        assert result.estimate == one.mean()
    assert difference(values((4, 1), 1), values((4, 1), 2)).verdict == "inconclusive"


def test_ends_stay_inside_the_support_and_other_figures_have_none():
    nearly = np.array([[0.0, 0.0, 0.1], [0.0, 0.0, 0.0]])
    assert interval(nearly).low == 0
    assert interval(100 * nearly, support=None).low < 0
    lengths = interval(np.full(10, 7.0), support=None)
    assert (lengths.estimate, lengths.method) == (7.0, "none")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(0), r"\[problems\] or \[seeds, problems\], got an array of shape \[0\]"),
        (np.zeros((2, 2, 2)), r"shape \[2, 2, 2\]"),
        (np.array([0.5, np.nan]), "finite"),
        (np.array([0.5, 1.5]), r"in \[0.0, 1.0\], got 0.5 to 1.5"),
    ],
)
def test_bad_values_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        interval(bad)


def test_arms_that_can_not_be_compared_are_refused():
    with pytest.raises(ValueError, match="the same problems, got 4 and 5"):
        difference(values(4), values(5))
    with pytest.raises(ValueError, match="paired seeds need as many in both arms, got 3 and 2"):
        difference(values((3, 4)), values((2, 4)))
    with pytest.raises(ValueError, match="level"):
        interval(values(4), level=95)
