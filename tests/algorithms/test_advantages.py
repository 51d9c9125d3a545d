"""Advantages against hand-worked numbers and a slow implementation in plain Python."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rloop_lightning.algorithms.advantages import centred, group_normalised, mean_normalised


def test_centred_subtracts_the_mean_of_each_problem():
    # means 0.25 and 2
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 2.0, 3.0]])
    expected = [[0.75, -0.25, -0.25, -0.25], [-1.0, 0.0, 0.0, 1.0]]
    assert centred(rewards).tolist() == expected


def test_group_normalised_divides_by_the_sample_deviation():
    # [1, 0, 0, 0]: mean 1/4, squared deviations 9/16 + 3/16 = 3/4, / (4 - 1) = 1/4, std 1/2 -> 3/2 and -1/2.
    # With 4 below instead of 3 it would be std 0.4330 and 1.7321.
    # [0, 4]: mean 2, squared deviations 8, / 1 = 8, std 2.8284 -> -+ 1/sqrt 2.
    assert group_normalised(torch.tensor([[1.0, 0, 0, 0]]), eps=0.0).tolist() == [[1.5, -0.5, -0.5, -0.5]]
    half = math.sqrt(0.5)
    assert group_normalised(torch.tensor([[0.0, 4.0]]), eps=0.0)[0].tolist() == pytest.approx([-half, half], rel=1e-6)


def test_mean_normalised_divides_by_the_mean():
    # One success of four: mean 1/4, (1 - 1/4) / (1/4) = 3 and -1. Three of four: 1/3 and -1. Means 2 and 1: 1, 0, -1.
    rewards = torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 1, 0], [4.0, 2, 0, 2], [0.0, 1, 2, 1]])
    expected = [[3.0, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [1.0, 0, -1, 0], [-1.0, 0, 1, 0]]
    for row, numbers in zip(mean_normalised(rewards).tolist(), expected, strict=True):
        assert row == pytest.approx(numbers)


def test_mean_normalised_averages_to_the_gradient_of_the_mean_log_likelihood_of_successes():
    """sum_i A_i s_i / G = mean of s over the successes - mean of s: the paper's estimator with its control variate."""
    rewards, scores = torch.tensor([[1.0, 0, 1, 0, 0]]), torch.tensor([0.3, -2.0, 0.5, 1.0, 0.0])
    estimate = (mean_normalised(rewards)[0] * scores).mean()
    assert float(estimate) == pytest.approx((0.3 + 0.5) / 2 - float(scores.mean()), rel=1e-5)


@pytest.mark.parametrize("rewards", [[1.0, -1.0], [-3.0, 1.0], [0.5, -0.5, 0.0], [-1.0, -2.0]])
def test_a_mean_that_is_not_positive_gives_zero(rewards):
    assert mean_normalised(torch.tensor([rewards])).tolist() == [[0.0] * len(rewards)]


def test_rewards_below_zero_never_make_an_advantage_larger_than_the_group():
    # mean 0.0025 / 4 would give A = 1599; (max - min) / G = 1.9975 / 4 is the divisor instead.
    rewards = [1.0, -0.9975, 0.0, 0.0]
    advantages = mean_normalised(torch.tensor([rewards], dtype=torch.float64))[0].tolist()
    assert advantages == pytest.approx([(reward - 0.0025 / 4) / (1.9975 / 4) for reward in rewards])


def test_eps_is_added_to_the_deviation():
    # std 1/2 + eps 1/2 = 1
    assert group_normalised(torch.tensor([[1.0, 0, 0, 0]]), eps=0.5).tolist() == [[0.75, -0.25, -0.25, -0.25]]


@pytest.mark.parametrize("function", [centred, group_normalised, mean_normalised])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -0.3, 1 / 3, 1e6 + 0.1, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_rewards_give_exactly_zero(function, value, dtype, size):
    rewards = torch.full((2, size), value, dtype=dtype)
    assert function(rewards).tolist() == [[0.0] * size] * 2


def test_the_mean_of_equal_rewards_is_not_always_the_reward():
    """Why equality decides: a residue of rounding, over a deviation of the same size, is an advantage of order 1."""
    sizes = [n for n in range(2, 50) if float(torch.full((n,), 0.1, dtype=torch.float64).mean()) != 0.1]
    assert sizes
    for n in sizes:
        assert group_normalised(torch.full((1, n), 0.1, dtype=torch.float64), eps=0.0).tolist() == [[0.0] * n]


def test_a_group_of_equal_rewards_leaves_its_neighbours_alone():
    advantages = group_normalised(torch.tensor([[0.1, 0.1, 0.1], [0.0, 1.0, 2.0]]), eps=0.0)
    assert advantages.tolist() == [[0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]]
    assert advantages.dtype == torch.float32


def slow(rewards, normalise):
    mean = math.fsum(rewards) / len(rewards)
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    scale = statistics.stdev(rewards) + 1e-6 if normalise else 1.0
    return [(reward - mean) / scale for reward in rewards]


groups = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.1, 0.25, 1.0, 7.5]), min_size=size, max_size=size),
        min_size=1,
        max_size=4,
    )
)


@given(groups)
def test_both_equal_a_slow_implementation(rewards):
    for function, normalise in ((centred, False), (group_normalised, True)):
        advantages = function(torch.tensor(rewards, dtype=torch.float64))
        for row, group in zip(advantages.tolist(), rewards, strict=True):
            assert row == pytest.approx(slow(group, normalise), rel=1e-6, abs=1e-7)
            assert sum(row) == pytest.approx(0.0, abs=1e-5)
