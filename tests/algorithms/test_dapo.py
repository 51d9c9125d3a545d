"""DAPO against a slow full-batch implementation: loops over rows and tokens, by cases, float64."""

import math
import statistics

import pytest
import torch
from builders import (
    GradientRecorder,
    StepMetrics,
    fit,
    gradients,
    make_group,
    make_policy,
    make_rollout,
    relative_difference,
    slow_logprobs,
)

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.overlong import soft_overlong_punishment
from rloop_lightning.types import RolloutBatch, RolloutStep, SamplingParams

SAMPLING = SamplingParams(max_new_tokens=10)


def make_groups(count=4, size=4, seed=0):
    """Groups of random rollouts of 1 to 10 tokens, those of 10 truncated; rewards of three values."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high, n=1):
        return torch.randint(0, high, (n,), generator=generator).tolist()

    groups = []
    for p in range(count):
        rollouts = []
        for _ in range(size):
            length = 1 + draw(10)[0]
            rollouts.append(
                make_rollout(
                    f"p{p}",
                    draw(25, length),
                    prompt=draw(25, 1 + p),
                    reward=[0.0, 1.0, 0.25][draw(3)[0]],
                    finish_reason="length" if length == 10 else "stop",
                )
            )
        groups.append(make_group(*rollouts))
    return groups


def slow_punishment(length, max_tokens, buffer):
    if length <= max_tokens - buffer:
        return 0.0
    return ((max_tokens - buffer) - length) / buffer if length <= max_tokens else -1.0


def slow_gradient_and_loss(policy, old, groups, *, low, high, dual, mask_truncated, buffer):
    """d loss / d weights, the loss and the share of tokens without gradient, from the formulas in the papers."""
    rollouts, advantages = [], []
    for group in groups:
        rewards = [r.reward + (slow_punishment(r.length, 10, buffer) if buffer else 0.0) for r in group.rollouts]
        mean = sum(rewards) / len(rewards)
        for rollout, reward in zip(group.rollouts, rewards, strict=True):
            rollouts.append(rollout)
            same = max(rewards) == min(rewards)
            advantages.append(0.0 if same else (reward - mean) / (statistics.stdev(rewards) + 1e-6))
    tokens = sum(r.length for r in rollouts if not (mask_truncated and r.finish_reason == "length"))
    policy.zero_grad()
    loss = value = cut = 0.0
    for rollout, advantage, old_row in zip(rollouts, advantages, old, strict=True):
        if mask_truncated and rollout.finish_reason == "length":
            continue
        ids = torch.tensor([*rollout.prompt_ids, *rollout.completion_ids])
        logits = policy.model(input_ids=ids[None]).logits[0]
        for t in range(rollout.length):
            position = len(rollout.prompt_ids) + t
            logprob = torch.log_softmax(logits[position - 1], dim=-1)[ids[position]]
            rho = math.exp(logprob.item() - old_row[t])
            outside = (advantage > 0 and rho > 1 + high) or (advantage < 0 and rho < 1 - low)
            bound = (1 + high) if advantage > 0 else (1 - low)
            token = -(bound if outside else rho) * advantage
            slope = 0.0 if outside else -rho * advantage
            if dual is not None and advantage < 0 and token > -dual * advantage:
                token, slope = -dual * advantage, 0.0
            cut += outside / tokens
            value += token / tokens
            loss = loss + slope / tokens * logprob
    loss.backward()
    return gradients(policy), value, cut


@pytest.mark.parametrize(
    ("low", "high", "dual", "mask_truncated", "buffer"),
    [
        (0.2, 0.28, None, False, 0),
        (0.2, 0.28, 1.3, False, 0),
        (0.2, 0.28, None, True, 0),
        (0.2, 0.28, None, False, 4),
        (0.1, 0.5, 2.0, True, 6),
    ],
)
def test_an_update_equals_the_slow_implementation(low, high, dual, mask_truncated, buffer):
    policy, groups = make_policy(max_tokens=40), make_groups()
    module = DAPO(
        clip_eps_low=low,
        clip_eps_high=high,
        dual_clip=dual,
        mask_truncated=mask_truncated,
        overlong_buffer_tokens=buffer,
        updates_per_step=1,
    )
    batch = module.make_batch(groups, SAMPLING)
    # Off the policy by up to 0.5 nats, so that ratios pass every bound.
    noise = torch.rand(batch.loss_mask.shape, generator=torch.Generator().manual_seed(5)) - 0.5
    old_logprobs = (policy.logprobs(batch).logprobs.detach() + noise) * batch.completion_mask
    batch = RolloutBatch(**{**batch.__dict__, "old_logprobs": old_logprobs})
    old = [old_logprobs[i, : int(n)].tolist() for i, n in enumerate(batch.completion_lengths)]
    expected, value, cut = slow_gradient_and_loss(
        policy, old, groups, low=low, high=high, dual=dual, mask_truncated=mask_truncated, buffer=buffer
    )
    # KL(old || new) by Schulman's k3 on the old policy's tokens, below ratio 10.
    of_rows = zip(slow_logprobs(policy, batch), old, batch.loss_mask.any(1), batch.advantages.tolist(), strict=True)
    moves, cut_dual = [], []
    for new, before_of, in_loss, advantage in of_rows:
        if in_loss:
            moves += [logprob - before for logprob, before in zip(new.tolist(), before_of, strict=True)]
            cut_dual += [dual is not None and advantage < 0 and d > math.log(dual) for d in moves[len(cut_dual) :]]
    recorder, metrics = GradientRecorder(), StepMetrics()
    fit(module, policy, [RolloutStep(0, tuple(groups), batch, {})], [recorder, metrics])
    assert metrics.steps[0]["policy/update_kl_nats"] == pytest.approx(
        sum(math.exp(d) - d - 1 for d in moves) / len(moves), rel=1e-4
    )
    sides = [metrics.steps[0][f"policy/clip_fraction_{side}"] for side in ("low", "high")]
    assert sum(sides) == pytest.approx(cut)
    assert min(sides) > 0
    assert relative_difference(recorder.gradients[0], expected) < 1e-5
    assert metrics.steps[0]["train/loss"] == pytest.approx(value, rel=1e-4, abs=1e-5)
    of_dual = sum(cut_dual) / len(cut_dual)
    assert metrics.steps[0].get("policy/clip_fraction_dual", 0.0) == pytest.approx(of_dual)
    assert metrics.steps[0]["policy/clip_fraction"] == pytest.approx(cut + of_dual)
    assert 0 < cut < 1


def test_truncated_rollouts_are_there_to_be_masked():
    finish = [rollout.finish_reason for group in make_groups() for rollout in group.rollouts]
    assert 0 < finish.count("length") < len(finish)


def test_the_first_update_is_reinforce_with_group_advantages():
    """Ratio 1: the gradient is that of -mean over tokens of A log p, whatever the clip."""
    policy, groups = make_policy(), make_groups()
    module = DAPO(updates_per_step=1)
    batch = module.make_batch(groups, SAMPLING)
    tokens = int(batch.completion_lengths.sum())
    rows = slow_logprobs(policy, batch)
    (-sum(float(batch.advantages[i]) * row.sum() for i, row in enumerate(rows)) / tokens).backward()
    expected, recorder = gradients(policy), GradientRecorder()
    policy.zero_grad()
    fit(module, policy, [RolloutStep(0, tuple(groups), batch, {})], [recorder])
    assert relative_difference(recorder.gradients[0], expected) < 1e-5


def test_soft_overlong_punishment_by_hand():
    # L_max 20, L_cache 8: nothing up to 12, then (12 - length) / 8, and -1 from 20 on.
    lengths = torch.tensor([1, 11, 12, 13, 14, 16, 18, 19, 20, 21, 100])
    expected = [0, 0, 0, -0.125, -0.25, -0.5, -0.75, -0.875, -1, -1, -1]
    assert soft_overlong_punishment(lengths, max_tokens=20, buffer_tokens=8).tolist() == expected


def test_the_punishment_is_added_before_advantages_are_taken():
    # 10 tokens at most, buffer 4: 6 tokens cost nothing, 8 half a point, 10 a whole one.
    rollouts = [
        make_rollout("a", range(2, 2 + n), reward=reward) for n, reward in ((6, 1.0), (8, 1.0), (10, 1.0), (4, 0.0))
    ]
    group = make_group(*rollouts)
    module = DAPO(overlong_buffer_tokens=4)
    assert module.rewards([group], SAMPLING).tolist() == [1.0, 0.5, 0.0, 0.0]
    # 1, 1/2, 0, 0: mean 3/8, squared deviations 25/64 + 1/64 + 9/64 + 9/64 = 11/16, over 3 is 11/48
    expected = [(reward - 3 / 8) / (11 / 48) ** 0.5 for reward in (1, 0.5, 0, 0)]
    assert module.make_batch([group], SAMPLING).advantages.tolist() == pytest.approx(expected, abs=1e-5)
    assert DAPO().rewards([group], SAMPLING).tolist() == [1.0, 1.0, 1.0, 0.0]
    assert [rollout.reward for rollout in group.rollouts] == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(("successes", "kept"), [((), False), ((0,), True), ((0, 1), True), ((0, 1, 2), False)])
def test_dynamic_sampling_looks_at_success_not_at_reward(successes, kept):
    for rewards in ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5)):
        group = make_group(*[make_rollout(reward=r, success=i in successes) for i, r in enumerate(rewards)])
        assert DAPO().keep_group(group) is kept
        assert DAPO(dynamic_sampling=False).keep_group(group)


def test_overlong_filtering_masks_truncated_rollouts_alone():
    cut, whole = make_rollout(finish_reason="length"), make_rollout(completion=(6, 1), reward=1.0)
    assert DAPO(mask_truncated=True).make_batch([make_group(cut, whole)], SAMPLING).loss_mask.tolist() == [
        [False, False, False],
        [True, True, False],
    ]
    assert DAPO().make_batch([make_group(cut, whole)], SAMPLING).loss_mask.tolist() == [[True] * 3, [True, True, False]]


def test_a_batch_is_problem_major_and_at_the_sampling_temperature():
    groups = make_groups()
    batch = DAPO().make_batch(groups, SamplingParams(max_new_tokens=10, temperature=0.6))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert batch.completion_lengths.tolist() == [rollout.length for rollout in rollouts]
    assert batch.temperature == 0.6
    for p, group in enumerate(groups):
        rewards = [rollout.reward for rollout in group.rollouts]
        spread = statistics.stdev(rewards) + 1e-6
        expected = [(reward - statistics.mean(rewards)) / spread for reward in rewards]
        assert batch.advantages[4 * p : 4 * p + 4].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_step_of_dapo_makes_what_was_right_likelier():
    policy = make_policy()
    module = DAPO(updates_per_step=1, lr=0.01, warmup_steps=0, weight_decay=0.0)
    right, wrong = make_rollout(completion=(6, 7, 1), reward=1.0), make_rollout(completion=(8, 9, 1))
    group = make_group(right, wrong)
    batch = module.make_batch([group], SAMPLING)
    before = [float(row.sum()) for row in policy.logprobs(batch).logprobs.detach()]
    fit(module, policy, [RolloutStep(0, (group,), batch, {})])
    after = [float(row.sum()) for row in policy.logprobs(batch).logprobs.detach()]
    assert after[0] > before[0] + 0.1
    assert after[1] < before[1] - 0.1
