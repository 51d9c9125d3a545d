"""Estimates of the KL divergence: values, gradients and expectations of k1, k2 and k3."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rloop_lightning.algorithms.kl_term import kl

PI = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
OTHER = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)


def value_and_slope(logprob, other, estimator):
    mine = torch.tensor([[logprob]], dtype=torch.float64, requires_grad=True)
    estimate = kl(mine, torch.tensor([[other]], dtype=torch.float64), estimator)
    (slope,) = torch.autograd.grad(estimate.sum(), mine)
    return float(estimate.detach()), float(slope)


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [
        # lp = -1, lp_ref = -1.5: d = -0.5
        ("k1", 0.5, 1.0),  # -d, and d lp / d lp
        ("k2", 0.125, 0.5),  # d^2 / 2 = 1/8, and -d
        ("k3", math.exp(-0.5) + 0.5 - 1, 1 - math.exp(-0.5)),
    ],
)
def test_one_token_by_hand(estimator, value, slope):
    assert value_and_slope(-1.0, -1.5, estimator) == (pytest.approx(value), pytest.approx(slope))


def test_k3_of_three_tokens_by_hand():
    # d = other - mine = 0, ln 2, -ln 2: exp(d) - d - 1 = 0, 1 - ln 2, ln 2 - 1/2
    mine = torch.tensor([[-1.0, -1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    other = mine.detach() + torch.tensor([0.0, math.log(2), -math.log(2)])
    estimate = kl(mine, other, "k3")
    assert estimate[0].tolist() == pytest.approx([0.0, 1 - math.log(2), math.log(2) - 0.5], abs=1e-7)
    # d k3 / d mine = 1 - exp(d)
    estimate.sum().backward()
    assert mine.grad[0].tolist() == pytest.approx([0.0, -1.0, 0.5], abs=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_estimate_the_kl_divergence(estimator):
    exact = sum(float(p) * math.log(float(p) / float(q)) for p, q in zip(PI, OTHER, strict=True))
    assert float((PI * kl(PI.log()[None], OTHER.log()[None], estimator)[0]).sum()) == pytest.approx(exact)


def expected_gradient(estimator):
    """Of the estimate alone, by the logits, in expectation over tokens of the policy; and that of the exact KL."""
    logits = PI.log().requires_grad_()
    logprobs = torch.log_softmax(logits, 0)
    expected = (PI * kl(logprobs[None], OTHER.log()[None], estimator)[0]).sum()
    exact = (logprobs.exp() * (logprobs - OTHER.log())).sum()
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)
    return gradient, torch.autograd.grad(exact, logits)[0]


def test_the_gradient_of_k1_is_zero_in_expectation_and_that_of_k2_is_the_divergences():
    """Why k1 is refused as a loss."""
    gradient, exact = expected_gradient("k1")
    assert float(gradient.abs().max()) < 1e-12
    assert float(exact.abs().max()) > 0.1
    torch.testing.assert_close(*expected_gradient("k2"))


logprobs = st.floats(-6, 0)


@given(logprobs, logprobs)
def test_every_estimate_equals_its_formula(logprob, other):
    d = other - logprob
    expected = {"k1": (-d, 1.0), "k2": (d * d / 2, -d)}
    if d <= math.log(10):
        expected["k3"] = (math.exp(d) - d - 1, 1 - math.exp(d))
    else:  # the tangent at ln 10
        expected["k3"] = (9 * (d - math.log(10)) + 9 - math.log(10), -9.0)
    for estimator, (value, slope) in expected.items():
        assert value_and_slope(logprob, other, estimator) == pytest.approx((value, slope), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("d", "estimator", "value", "slope"),
    [
        (19.0, "k3", 9 * 19 + 9 - 10 * math.log(10), -9.0),  # exp(19) = 1.8e8 without the bound
        (500.0, "k1", -500.0, 1.0),
        (500.0, "k2", 125000.0, -500.0),
        (500.0, "k3", 9 * 500 + 9 - 10 * math.log(10), -9.0),
        (-500.0, "k3", 499.0, 1.0),
    ],
)
def test_a_token_far_from_the_other_policy_is_pulled_back_by_a_bounded_force(d, estimator, value, slope):
    assert value_and_slope(-500.0, d - 500.0, estimator) == (pytest.approx(value), pytest.approx(slope))


def test_a_small_difference_loses_no_digits():
    """k3 and its gradient of float32 logprobs, where exp(d) is 1 but for a few bits."""
    small = [10.0**-power for power in range(1, 9)]
    d = torch.tensor([small, [-value for value in small]])
    logprobs = torch.zeros_like(d, requires_grad=True)
    estimate = kl(logprobs, d, "k3")
    estimate.sum().backward()
    assert estimate.dtype == torch.float32
    for value, slope, exact in zip(*(x.flatten().tolist() for x in (estimate, logprobs.grad, d)), strict=True):
        series = sum(exact**power / math.factorial(power) for power in range(2, 9))
        assert value == pytest.approx(series, rel=1e-6, abs=0)
        assert slope == pytest.approx(-math.expm1(exact), rel=1e-6, abs=0)


def test_k3_of_rounding_errors_is_never_negative():
    logprobs = -torch.rand(1, 10_000, generator=torch.Generator().manual_seed(0))
    other = logprobs * (1 + 1e-7 * torch.randn(1, 10_000, generator=torch.Generator().manual_seed(1)))
    assert float(kl(logprobs, other, "k3").min()) >= 0
