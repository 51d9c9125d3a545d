"""RFT: maximum likelihood on the expert set, weighted by the reward."""

import math

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

from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.types import collate

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
        ("binary", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 2.0, 1000.0]),
        ("exp", [math.exp(0.5), math.e, math.exp(2), math.exp(20)]),  # finite whatever the reward
    ],
)
def test_what_a_rollout_weighs(weighting, expected):
    module = RFT(weight=weighting)
    assert [module.weight(reward) for reward in (0.5, 1.0, 2.0, 1000.0)] == pytest.approx(expected)


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
