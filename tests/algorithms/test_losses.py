"""Losses: values and gradients against hand-worked numbers and against loops in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rloop_lightning.algorithms.aggregation import loss_count
from rloop_lightning.algorithms.losses import (
    clip_metrics,
    clipped,
    clipped_loss,
    clipped_surrogate,
    negative_log_likelihood,
    ratio,
)

EPS = {"clip_eps_low": 0.2, "clip_eps_high": 0.28}


def surrogate(logprobs, old_logprobs, advantages, **kwargs):
    return clipped_surrogate(ratio(logprobs, old_logprobs), advantages, **kwargs)


def values_and_gradients(rhos, advantages, **kwargs):
    """Token losses and d loss / d logprob where old logprobs are 0, so that logprob = log rho."""
    logprobs = torch.tensor([[math.log(rho)] for rho in rhos], dtype=torch.float64, requires_grad=True)
    loss = surrogate(
        logprobs, torch.zeros_like(logprobs), torch.tensor(advantages, dtype=torch.float64), **{**EPS, **kwargs}
    )
    loss.sum().backward()
    return loss.flatten().tolist(), logprobs.grad.flatten().tolist()


def test_clipped_surrogate_by_hand():
    # eps 0.2 below, 0.28 above. d rho / d logp = rho.
    #  rho   A   rho A   clip(rho) A   L = -min      dL/dlogp
    #  1.0   2   2.0     2.0           -2.0          -2.0        inside: REINFORCE
    #  1.2   1   1.2     1.2           -1.2          -1.2        inside
    #  1.5   1   1.5     1.28          -1.28          0          clipped above
    #  0.5   1   0.5     0.8           -0.5          -0.5        A > 0 and rho low: never clipped
    #  0.9  -1  -0.9    -0.9            0.9           0.9        inside
    #  0.5  -1  -0.5    -0.8            0.8           0          clipped below
    #  1.5  -2  -3.0    -2.56           3.0           3.0        A < 0 and rho high: never clipped
    #  1.5   0   0       0              0             0
    rhos = [1.0, 1.2, 1.5, 0.5, 0.9, 0.5, 1.5, 1.5]
    advantages = [2.0, 1.0, 1.0, 1.0, -1.0, -1.0, -2.0, 0.0]
    values, grads = values_and_gradients(rhos, advantages)
    assert values == pytest.approx([-2.0, -1.2, -1.28, -0.5, 0.9, 0.8, 3.0, 0.0])
    assert grads == pytest.approx([-2.0, -1.2, 0.0, -0.5, 0.9, 0.0, 3.0, 0.0])


def test_clip_higher_has_its_own_bound_on_each_side():
    # rho = 1.25 passes PPO's 1.2 but not 1.28; rho = 0.75 is below 0.8 and above 0.72.
    assert values_and_gradients([1.25], [1.0]) == (pytest.approx([-1.25]), pytest.approx([-1.25]))
    assert values_and_gradients([1.25], [1.0], clip_eps_high=0.2) == (pytest.approx([-1.2]), [0.0])
    assert values_and_gradients([0.75], [-1.0]) == (pytest.approx([0.8]), [0.0])
    assert values_and_gradients([0.75], [-1.0], clip_eps_low=0.28) == (pytest.approx([0.75]), pytest.approx([0.75]))


def test_dual_clip_by_hand():
    # c = 3. A < 0: L = min(clipped loss, -c A).
    #  rho   A    clipped loss   -c A   L      dL/dlogp
    #  5    -2    10             6      6      0          cut
    #  2    -2    4              6      4      4
    #  0.5  -2    1.6            6      1.6    0          clipped below already
    #  5     2    -2.56          -6     -2.56  0          A > 0: untouched, though -c A is smaller
    #  1     2    -2             -6     -2     -2
    values, grads = values_and_gradients([5.0, 2.0, 0.5, 5.0, 1.0], [-2.0, -2.0, -2.0, 2.0, 2.0], dual_clip=3.0)
    assert values == pytest.approx([6.0, 4.0, 1.6, -2.56, -2.0])
    assert grads == pytest.approx([0.0, 4.0, 0.0, 0.0, -2.0])


def test_with_the_default_dual_clip_no_token_outweighs_all_others():
    # c = 10, A = -1. rho = e^19 = 1.8e8: L = 10 without a gradient; rho = 9: L = 9; rho = 11: L = 10.
    values, grads = values_and_gradients([math.exp(19), 9.0, 11.0], [-1.0, -1.0, -1.0], dual_clip=10.0)
    assert values == pytest.approx([10.0, 9.0, 10.0])
    assert grads == pytest.approx([0.0, 9.0, 0.0])
    values, grads = values_and_gradients([math.exp(19)], [-1.0], dual_clip=None)
    assert grads == pytest.approx([1.8e8], rel=0.01)


def test_at_ratio_one_the_gradient_is_reinforce():
    logprobs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.5, -2.0, 0.25], dtype=torch.float64)
    for dual_clip in (None, 3.0):
        loss = surrogate(logprobs, logprobs.detach(), advantages, dual_clip=dual_clip, **EPS)
        (grad,) = torch.autograd.grad(loss.sum(), logprobs)
        assert torch.equal(grad, -advantages[:, None].expand(3, 4))


def test_the_log_ratio_is_clamped_to_20():
    old = torch.zeros(1, 3, dtype=torch.float64)
    logprobs = torch.tensor([[1000.0, -1000.0, 19.0]], dtype=torch.float64, requires_grad=True)
    rho = ratio(logprobs, old)
    assert rho[0].tolist() == pytest.approx([math.exp(20), math.exp(-20), math.exp(19)])
    loss = surrogate(logprobs, old, torch.tensor([-1.0], dtype=torch.float64), **EPS)
    # rho A is unbounded for A < 0 and rho high: exp(20) at most, and without a gradient there.
    assert loss[0].tolist() == pytest.approx([math.exp(20), 0.8, math.exp(19)])
    (grad,) = torch.autograd.grad(loss.sum(), logprobs)
    assert grad[0].tolist() == pytest.approx([0.0, 0.0, math.exp(19)])


def test_clipped_marks_the_tokens_without_gradient():
    rhos = torch.tensor([[1.29, 1.27, 0.5, 1.0], [0.79, 0.81, 1.5, 1.0], [1.29, 0.79, 1.0, 9.0]], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    marked = clipped(rhos, advantages, **EPS)
    assert marked.tolist() == [[True, False, False, False], [True, False, False, False], [False] * 4]
    metrics = clip_metrics(rhos, advantages, **EPS)
    assert metrics["policy/clip_fraction"].equal(marked)
    assert metrics["policy/clip_fraction_high"].tolist() == [[True, False, False, False], [False] * 4, [False] * 4]
    assert metrics["policy/clip_fraction_low"].tolist() == [[False] * 4, [True, False, False, False], [False] * 4]


def test_what_dual_clip_cuts_is_counted_with_the_clipped_tokens():
    logprobs = torch.tensor([[2.5, 2.0, -0.5], [2.5, 0.3, 0.0]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    output = clipped_loss(ratio(logprobs, torch.zeros_like(logprobs)), advantages, dual_clip=10.0, **EPS)
    (grad,) = torch.autograd.grad(output.loss.sum(), logprobs)
    assert output.metrics["policy/clip_fraction_dual"].tolist() == [[True, False, False], [False] * 3]
    assert output.metrics["policy/clip_fraction"].equal(grad == 0)  # e^2.5 is above 10, e^2 is not
    without = clipped_loss(ratio(logprobs, torch.zeros_like(logprobs)), advantages, dual_clip=None, **EPS)
    assert without.metrics.keys() == clip_metrics(logprobs, advantages, **EPS).keys()


def test_negative_log_likelihood_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], requires_grad=True)
    loss = negative_log_likelihood(logprobs, torch.tensor([1.0, 0.5]))
    assert loss.tolist() == [[1.0, 2.0], [1.5, 2.0]]
    loss.sum().backward()
    assert logprobs.grad.tolist() == [[-1.0, -1.0], [-0.5, -0.5]]


def slow_token(logprob, old, advantage, low, high, dual):
    """Value and derivative of one token's loss, by cases."""
    rho = math.exp(min(max(logprob - old, -20.0), 20.0))
    slope = rho if abs(logprob - old) <= 20 else 0.0
    if advantage > 0:
        return (-rho * advantage, -slope * advantage) if rho <= 1 + high else (-(1 + high) * advantage, 0.0)
    if advantage < 0:
        value, grad = (-rho * advantage, -slope * advantage) if rho >= 1 - low else (-(1 - low) * advantage, 0.0)
        if dual is not None and value > -dual * advantage:
            return -dual * advantage, 0.0
        return value, grad
    return 0.0, 0.0


@st.composite
def ragged(draw):
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    number = st.floats(-3, 3).map(lambda value: round(value, 3))
    tokens = [[(draw(number), draw(number), draw(st.booleans())) for _ in range(length)] for length in lengths]
    advantages = [draw(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0])) for _ in lengths]
    # Irregular numbers keep draws of three decimals off the kinks, where either one-sided slope is right.
    return tokens, advantages, draw(st.sampled_from([0.2001, 0.5003])), draw(st.sampled_from([0.2803, 0.9007]))


@settings(max_examples=60)
@given(ragged(), st.sampled_from([None, 1.5009, 10.0]))
def test_a_masked_sum_equals_a_loop_over_tokens(case, dual):
    tokens, advantages, low, high = case
    width = max(map(len, tokens))
    logprobs, old = torch.zeros(2, len(tokens), width, dtype=torch.float64)
    mask = torch.zeros(len(tokens), width, dtype=torch.bool)
    expected_value, expected_grad = 0.0, torch.zeros_like(logprobs)
    for i, row in enumerate(tokens):
        for t, (logprob, old_logprob, carries) in enumerate(row):
            logprobs[i, t], old[i, t], mask[i, t] = logprob, old_logprob, carries
            if carries:
                value, grad = slow_token(logprob, old_logprob, advantages[i], low, high, dual)
                expected_value += value
                expected_grad[i, t] = grad
    logprobs.requires_grad_()
    loss = surrogate(
        logprobs,
        old,
        torch.tensor(advantages, dtype=torch.float64),
        clip_eps_low=low,
        clip_eps_high=high,
        dual_clip=dual,
    )
    total = (loss * mask).sum()
    (grad,) = torch.autograd.grad(total, logprobs)
    assert total.item() == pytest.approx(expected_value, abs=1e-9)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-9)
    assert not grad[~mask].any()


@settings(max_examples=30)
@given(ragged(), st.sampled_from([0.1003, 0.2001]))
def test_equal_bounds_are_ppo(case, eps):
    tokens, advantages, *_ = case
    for row, advantage in zip(tokens, advantages, strict=True):
        for logprob, old, _ in row:
            rho = math.exp(logprob - old)
            ppo = -min(rho * advantage, max(1 - eps, min(1 + eps, rho)) * advantage)
            loss = surrogate(
                torch.tensor([[logprob]], dtype=torch.float64),
                torch.tensor([[old]], dtype=torch.float64),
                torch.tensor([advantage], dtype=torch.float64),
                clip_eps_low=eps,
                clip_eps_high=eps,
            )
            assert float(loss) == pytest.approx(ppo, abs=1e-12)


def test_a_constant_count_needs_the_length_limit():
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    assert loss_count(mask, "constant", 10) == 20
    with pytest.raises(ValueError, match="'constant' needs the rollouts' length limit"):
        loss_count(mask, "constant", 0)
