"""RFT: maximum likelihood on the expert set, weighted by the reward."""

import math
import re

import pytest
import torch
from builders import (
    RAGGED,
    GradientRecorder,
    StepMetrics,
    fit,
    gradients,
    make_policy,
    random_rollouts,
    relative_difference,
    slow_entropies,
    slow_logprobs,
)
from slow_algorithms import slow_kl
from slow_updates import MoveTo, moved_policy, slow_update

from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.batching import collate
from rloop_lightning.errors import RunFault

TOKENS = sum(completion for _, completion in RAGGED)


def expert_batch(weights=None):
    return collate(random_rollouts(RAGGED), weights or [1.0] * len(RAGGED))


def rft_step(module, batch):
    policy, recorder, metrics = make_policy(max_tokens=30), GradientRecorder(), StepMetrics()
    fit(module, policy, [batch], [recorder, metrics])
    return recorder.gradients, metrics.steps


def test_the_gradient_is_minus_that_of_the_mean_log_likelihood():
    policy, batch = make_policy(), expert_batch()
    mean = sum(row.sum() for row in slow_logprobs(policy, batch)) / TOKENS
    mean.backward()
    (gradient,), (metrics,) = rft_step(RFT(), batch)
    assert relative_difference(gradient, -gradients(policy)) < 1e-5
    assert metrics["train/loss"] == pytest.approx(-mean.item(), rel=1e-5)
    entropy = sum(float(row.sum()) for row in slow_entropies(policy, batch)) / TOKENS
    assert metrics["policy/entropy_nats"] == pytest.approx(entropy, rel=1e-5)


def test_weights_scale_each_rollouts_tokens():
    weights = [0.5, 0.0, 2.0, 1.0, 3.0, 0.25, 1.5, 4.0]
    policy, batch = make_policy(), expert_batch(weights)
    rows = slow_logprobs(policy, batch)
    (-sum(w * row.sum() for w, row in zip(weights, rows, strict=True)) / TOKENS).backward()
    (gradient,), _ = rft_step(RFT(), batch)
    assert relative_difference(gradient, gradients(policy)) < 1e-5


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("binary", [1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 2.0]),
        ("exp", [math.exp(0.5), math.e, math.exp(2)]),
    ],
)
def test_what_a_rollout_weighs(weighting, expected):
    module = RFT(weight=weighting)
    assert [module.weight(reward) for reward in (0.5, 1.0, 2.0)] == pytest.approx(expected)
    assert module.weights([0.5, 1.0, 2.0]) == pytest.approx(expected)
    assert module.weights([]) == []


@pytest.mark.parametrize(
    ("rewards", "exponents"),
    [
        ([20.0, -5.0], [20, -5]),
        ([-20.0, -21.0], [-20, -21]),
        ([1000.0, 999.0, 0.0], [20, 19, -980]),
        ([-1000.0, -1001.0], [-20, -21]),
    ],
)
def test_large_rewards_keep_the_ratios_of_their_weights(rewards, exponents):
    """The largest exponent is moved into +-20, and the others by as much, so that no weight is infinite."""
    for temperature in (0.5, 1.0):
        weights = RFT(weight="exp", weight_temperature=temperature).weights([r * temperature for r in rewards])
        assert weights == pytest.approx([math.exp(exponent) for exponent in exponents])


@pytest.mark.parametrize("weighting", ["binary", "linear"])
def test_other_weights_take_any_reward(weighting):
    assert RFT(weight=weighting).weights([1e6]) == [{"binary": 1.0, "linear": 1e6}[weighting]]


@pytest.mark.parametrize("weighting", ["binary", "linear", "exp"])
def test_no_weight_is_negative(weighting):
    """A success whose reward is below 0 is not made less likely: that would be gradient ascent."""
    weights = RFT(weight=weighting).weights([-1000.0, -2.0, -0.0, 0.0, 0.5])
    assert all(weight >= 0 for weight in weights)
    if weighting == "linear":
        assert weights == [0.0, 0.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize("rewards", [[-1.0, -3.0], [0.0], [-0.0, -1e-9]])
def test_a_set_without_weight_is_an_error(rewards):
    said = re.escape(f"--consolidate RFT: all {len(rewards)} rollouts of the expert set have weight 0 (rewards ")
    with pytest.raises(RunFault, match=said + ".*nothing would be trained; start a new run with another weight"):
        RFT(weight="linear").weights(rewards)


class Weighted(RFT):
    """A third party's weights."""

    def weight(self, reward):
        return reward


@pytest.mark.parametrize("weight", [-1.0, -1e-30, math.nan, math.inf, 1e39])
def test_a_weight_that_is_negative_or_not_finite_is_an_error(weight):
    said = f"--consolidate Weighted: the weight of a rollout with reward {weight:g} is {weight:g}; its method `weight`"
    with pytest.raises(RunFault, match=re.escape(said)):
        Weighted().weights([1.0, weight, 2.0])
    assert Weighted().weights([1.0, 0.0]) == [1.0, 0.0]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_scales_the_exponent(temperature):
    module = RFT(weight="exp", weight_temperature=temperature)
    assert [module.weight(reward) for reward in (0.5, -1.0)] == pytest.approx(
        [math.exp(0.5 / temperature), math.exp(-1.0 / temperature)]
    )


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_kl_term_holds_it_near_the_initial_policy(estimator):
    """beta 0.5 at the experts' tokens, not weighted by their rewards, against the policy that the phase began with."""
    weights = [0.5, 0.0, 2.0, 1.0, 3.0, 0.25, 1.5, 4.0]
    moved, batch = moved_policy(), expert_batch(weights)
    initial = [row.tolist() for row in slow_logprobs(make_policy(), batch)]

    def row_loss(i, row):
        terms = [slow_kl(logprob, other, estimator) for logprob, other in zip(row, initial[i], strict=True)]
        return [
            (-weights[i] * logprob + 0.5 * value, -weights[i] + 0.5 * slope)
            for logprob, (value, slope) in zip(row, terms, strict=True)
        ]

    expected, loss = slow_update(moved, batch, row_loss, TOKENS)
    recorder, metrics = GradientRecorder(), StepMetrics()
    module = RFT(kl_beta=0.5, kl_estimator=estimator)
    fit(module, make_policy(max_tokens=30), [batch], [MoveTo(moved), recorder, metrics])
    assert relative_difference(recorder.gradients[0], expected) < 1e-5
    assert metrics.steps[0]["train/loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics.steps[0]["policy/kl_nats"] > 0.01


def test_a_reference_without_a_kl_term_is_refused():
    assert RFT(kl_reference="base").invalid() == [
        "--consolidate.kl_reference needs --consolidate.kl_beta above 0, without which there is no reference, got base"
    ]
    assert RFT(kl_reference="base", kl_beta=0.1).invalid() == []


def test_every_wrong_setting_is_named():
    assert RFT(weight_temperature=0.0, kl_beta=-1.0).invalid() == [
        "--consolidate.kl_beta: expected a number >= 0, got -1.0",
        "--consolidate.weight_temperature: expected a number > 0, got 0.0",
    ]


def test_the_default_weighs_every_rollout_the_same():
    assert RFT().weight(0.3) == 1.0


def test_one_optimizer_step_a_mini_batch_at_the_learning_rate_of_the_step():
    policy, metrics = make_policy(), StepMetrics()
    trainer = fit(RFT(lr=0.4, warmup_steps=2), policy, [expert_batch()] * 3, [metrics])
    assert trainer.global_step == 3
    assert [step["train/lr"] for step in metrics.steps] == pytest.approx([0.2, 0.4, 0.4])


def test_training_on_the_expert_set_makes_it_likelier():
    policy, batch = make_policy(), expert_batch()
    before = policy.logprobs(batch).logprobs.sum()
    fit(RFT(lr=0.01), policy, [batch] * 5)
    assert float(policy.logprobs(batch).logprobs.sum().detach()) > float(before.detach()) + 10
    assert torch.isfinite(before)
