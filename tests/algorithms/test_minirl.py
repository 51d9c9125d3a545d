"""MiniRL: weight, mask and normaliser by hand, against a slow implementation, and as REINFORCE."""

import math

import pytest
import torch
from builders import GradientRecorder, fit, gradients, make_policy, random_batch, relative_difference, slow_logprobs
from slow_algorithms import SAMPLING, SlowMiniRL, assert_update_is, random_groups
from slow_updates import step_of

from rloop_lightning.algorithms.minirl import MiniRL
from rloop_lightning.types import RolloutStep, TokenScores

LN2 = math.log(2)


def test_token_losses_by_hand():
    # lp = -1. The engine said lp_mu = -1 - ln 2, -1 - ln 8, -1, -1 - ln 2: weights 2, 5 (cut from 8), 1, 2.
    # The old policy said lp_old = -1, -1, -1 - ln 2, -1 + ln 2: rho 1, 1, 2, 1/2.
    # A = 2: the third is dropped (rho > 1.27), the fourth is not: -w A lp = 4, 10, 0, 4; by lp -4, -10, 0, -4.
    # A = -2: the fourth is dropped (rho < 0.8), the third is not: -4, -10, -2, 0; by lp 4, 10, 2, 0.
    logprobs = torch.full((2, 4), -1.0, dtype=torch.float64, requires_grad=True)
    batch = random_batch(((1, 4), (1, 4)))
    engine = [-1 - LN2, -1 - 3 * LN2, -1.0, -1 - LN2]
    old = [-1.0, -1.0, -1 - LN2, -1 + LN2]
    fields = {
        "sampling_logprobs": torch.tensor([engine] * 2, dtype=torch.float64),
        "old_logprobs": torch.tensor([old] * 2, dtype=torch.float64),
        "advantages": torch.tensor([2.0, -2.0]),
    }
    batch = type(batch)(**{**batch.__dict__, **fields})
    output = MiniRL().loss(TokenScores(logprobs, logprobs.detach()), batch)
    (slopes,) = torch.autograd.grad(output.loss.sum(), logprobs)
    assert output.loss.tolist() == [pytest.approx([4.0, 10.0, 0.0, 4.0]), pytest.approx([-4.0, -10.0, -2.0, 0.0])]
    assert slopes.tolist() == [pytest.approx([-4.0, -10.0, 0.0, -4.0]), pytest.approx([4.0, 10.0, 2.0, 0.0])]
    assert output.metrics["policy/importance_weight"].tolist() == [pytest.approx([2.0, 5.0, 1.0, 2.0])] * 2
    assert output.metrics["policy/clip_fraction"].tolist() == [[False, False, True, False], [False, False, False, True]]


@pytest.mark.parametrize(
    ("ours", "slow"),
    [
        ({}, {}),
        ({"importance_cap": 1.2}, {"cap": 1.2}),
        ({"importance_weight": False}, {"weighs": False}),
        ({"clip": False}, {"clips": False}),
        ({"length_normalised": True}, {"aggregation": "sequence-mean"}),
        ({"clip_eps_low": 0.05, "clip_eps_high": 0.6}, {"low": 0.05, "high": 0.6}),
        (
            {"importance_weight": False, "clip": False, "length_normalised": True},
            {"weighs": False, "clips": False, "aggregation": "sequence-mean"},
        ),
    ],
)
def test_an_update_equals_the_slow_implementation(ours, slow):
    metrics = assert_update_is(MiniRL(**ours), SlowMiniRL(**slow))
    assert (metrics["policy/importance_weight"] == 1) != ours.get("importance_weight", True)
    assert (metrics["policy/clip_fraction"] == 0) != ours.get("clip", True)


def test_without_its_weight_it_may_be_corrected_as_the_others():
    module = MiniRL(importance_weight=False, importance_correction="truncate", importance_cap=1.5)
    assert module.invalid() == []
    assert_update_is(module, SlowMiniRL(weighs=False, correction="truncate", cap=1.5))


def test_on_policy_with_the_engines_logprobs_it_is_reinforce_with_a_centred_baseline():
    """lp_mu = lp_old = lp: the gradient of -mean over rollouts of A sum_t logp_t, A = r - mean r, to the last bit."""
    policy, groups = make_policy(), random_groups()
    module = MiniRL()
    batch = module.make_batch(groups, SAMPLING)
    batch.sampling_logprobs.copy_(policy.scores_no_grad(batch).logprobs)
    total = 0.0
    rollouts = iter(slow_logprobs(policy, batch))
    for group in groups:
        mean = math.fsum(rollout.reward for rollout in group.rollouts) / len(group.rollouts)
        for rollout in group.rollouts:
            total = total - (rollout.reward - mean) * next(rollouts).sum() / len(batch)
    total.backward()
    expected, recorder = gradients(policy), GradientRecorder()
    policy.zero_grad()
    fit(module, policy, [RolloutStep(0, tuple(groups), batch, {})], [recorder])
    assert relative_difference(recorder.gradients[0], expected) < 1e-5


def test_the_weight_follows_the_updates_of_a_rollout_step():
    """In the second update the policy has moved: the weight is current over engine, the mask current over old."""
    seen = []

    class Spy(MiniRL):
        def loss(self, scores, batch):
            output = super().loss(scores, batch)
            expected = (scores.logprobs.detach() - batch.sampling_logprobs).exp().clamp(max=5.0)
            torch.testing.assert_close(output.metrics["policy/importance_weight"], expected)
            seen.append(float((batch.old_logprobs - scores.logprobs.detach()).abs().max()))
            return output

    fit(Spy(updates_per_step=2, lr=0.05, warmup_steps=0), make_policy(), [step_of(random_batch())])
    assert seen[0] == 0
    assert seen[1] > 0.01


def test_what_would_weigh_twice_is_refused():
    (message,) = MiniRL(importance_correction="mask").invalid()
    assert message == (
        "--algo.importance_correction weights tokens twice with --algo.importance_weight true; turn one off, got mask"
    )


def test_a_level_that_its_weight_does_not_have_is_refused():
    (message,) = MiniRL(importance_level="sequence").invalid()
    assert message.startswith("--algo.importance_level must be token with --algo.importance_weight true")
    assert MiniRL(importance_level="sequence", importance_weight=False).invalid() == []


def test_every_wrong_setting_is_named():
    messages = MiniRL(clip_eps_low=1.0, clip_eps_high=0.0, importance_cap=0.5).invalid()
    assert messages == [
        "--algo.importance_cap: expected a number >= 1, got 0.5",
        "--algo.clip_eps_low: expected a number > 0 and < 1, got 1.0",
        "--algo.clip_eps_high: expected a number > 0, got 0.0",
    ]
