"""Distillation: its loss against a slow implementation, and its gradient on average against that of the reverse KL."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import (
    RAGGED,
    GradientRecorder,
    StepMetrics,
    fit,
    gradients,
    make_group,
    make_policy,
    make_rollout,
    random_rollouts,
    relative_difference,
    slow_distributions,
    slow_logprobs,
)
from slow_algorithms import slow_kl
from slow_updates import MoveTo, moved_policy, slow_update

from rloop_lightning.algorithms.distil import Distil
from rloop_lightning.errors import RunFault
from rloop_lightning.types import RolloutStep, SamplingParams

SAMPLING = SamplingParams(max_new_tokens=16)
TOKENS = sum(completion for _, completion in RAGGED)
SAMPLED = {
    **{"rollout/reward_mean": 0.5, "rollout/success_rate": 0.5, "rollout/length_tokens": 3.0},
    **{"rollout/truncated_rate": 0.0, "time/generate_s": 1.0, "time/reward_s": 1.0},
}


def step_of(batch, index: int = 0) -> RolloutStep:
    return RolloutStep(index, (), batch, SAMPLED)


def batch_of(module: Distil):
    return module.make_batch([make_group(rollout) for rollout in random_rollouts(RAGGED)], SAMPLING)


@pytest.mark.parametrize(
    ("aggregation", "share", "count"),
    [
        ("token-mean", lambda length: 1.0, TOKENS),
        ("sequence-mean", lambda length: 1 / length, len(RAGGED)),
        ("sequence-sum", lambda length: 1.0, len(RAGGED)),
    ],
)
def test_an_update_equals_the_slow_implementation(aggregation, share, count):
    """The teacher has the weights that the policy had before; in between it moves, as from theta_k to itself."""
    module, recorder, metrics = Distil(aggregation=aggregation, lr=1e-30), GradientRecorder(), StepMetrics()
    teacher, moved = make_policy(), moved_policy()
    module.learn_from(teacher)
    batch = batch_of(module)
    of_teacher = [row.tolist() for row in slow_logprobs(teacher, batch)]

    def row_loss(i, row):
        differences = [a - b for a, b in zip(row, of_teacher[i], strict=True)]
        return [(share(len(row)) * d * d / 2, share(len(row)) * d) for d in differences]

    expected, loss = slow_update(moved, batch, row_loss, count)
    fit(module, make_policy(max_tokens=30), [step_of(batch)], [MoveTo(moved), recorder, metrics])
    assert relative_difference(recorder.gradients[0], expected) < 1e-5
    assert metrics.steps[0]["train/loss"] == pytest.approx(loss, rel=1e-5)
    of_policy = [row.tolist() for row in slow_logprobs(moved, batch)]
    pairs = [
        pair for ours, theirs in zip(of_policy, of_teacher, strict=True) for pair in zip(ours, theirs, strict=True)
    ]
    divergence = sum(slow_kl(ours, theirs, "k3")[0] for ours, theirs in pairs) / TOKENS
    assert metrics.steps[0]["policy/teacher_kl_nats"] == pytest.approx(divergence, rel=1e-4)
    assert metrics.steps[0]["rollout/reward_mean"] == 0.5


def test_on_average_over_samples_the_gradient_is_that_of_the_reverse_kl():
    """One prompt, one token: sum_v pi(v) times the gradient at v, for every v of the vocabulary."""
    policy, teacher = moved_policy(), make_policy()
    vocabulary = policy.model.config.vocab_size
    module = Distil(aggregation="sequence-sum", lr=1e-30)
    module.learn_from(teacher)
    rollouts = [make_rollout(completion=(token,)) for token in range(vocabulary)]
    batch = module.make_batch([make_group(rollout) for rollout in rollouts], SAMPLING)
    ours, theirs = (slow_distributions(one, batch)[0][0] for one in (policy, teacher))
    (ours.exp() * (ours - theirs.detach())).sum().backward()
    expected = gradients(policy)
    weighted = torch.zeros_like(expected)
    for token, probability in enumerate(ours.exp().tolist()):
        recorder = GradientRecorder()
        one = Distil(aggregation="sequence-sum", lr=1e-30)
        one.learn_from(teacher)
        fit(one, make_policy(), [step_of(batch.select(torch.tensor([token])))], [MoveTo(policy), recorder])
        weighted += probability * recorder.gradients[0]
    assert relative_difference(weighted, expected) < 1e-4


def test_training_on_one_batch_brings_the_policy_nearer_to_the_teacher():
    module, metrics = Distil(lr=0.003, warmup_steps=0), StepMetrics()
    module.learn_from(moved_policy())
    batch = batch_of(module)
    fit(module, make_policy(), [step_of(batch, index) for index in range(8)], [metrics])
    distances = [step["policy/teacher_kl_nats"] for step in metrics.steps]
    assert distances[-1] < 0.3 * distances[0]
    assert all(not weight.requires_grad for weight in module.teacher.parameters())


def test_a_checkpoint_has_the_teacher():
    module = Distil()
    module.policy = make_policy()
    module.learn_from(module.policy)
    names = set(module.policy.state_dict())
    assert {name.removeprefix("teacher.frozen.") for name in module.state_dict() if name.startswith("teacher")} == names


def test_rollouts_without_their_kept_tokens_are_refused():
    with pytest.raises(RunFault, match="ratios against the engine would be biased"):
        Distil().make_batch([make_group(make_rollout())], replace(SAMPLING, top_p=0.9))


def test_every_wrong_setting_is_named():
    assert Distil(steps=0, rollouts_per_update=0, lr=0.0, start="explored").invalid() == [
        "--consolidate.lr: expected a number > 0, got 0.0",
        "--consolidate.rollouts_per_update: expected an integer > 0, got 0",
        "--consolidate.start: expected initial or base, got 'explored'",
        "--consolidate.steps: expected an integer > 0, got 0",
    ]
