"""What the algorithms become in their special cases: each other, PPO, REINFORCE, nothing."""

import math
from dataclasses import replace

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
    weights,
)
from every_algorithm import CASES, make_case
from slow_algorithms import SAMPLING, off_policy, random_groups

from rloop_lightning.algorithms import ALGORITHMS
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.algorithms.kl import KLConstrained
from rloop_lightning.algorithms.replay import Replay
from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.batching import collate
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.registry import find_class
from rloop_lightning.types import RolloutStep, TokenScores

EXPLORERS = {case: spec for case, spec in CASES.items() if spec[0] == "algorithms"}


def gradient_of(module, groups, change=lambda batch, policy: batch):
    policy, recorder = make_policy(), GradientRecorder()
    batch = change(module.make_batch(groups, SAMPLING), policy)
    fit(module, policy, [RolloutStep(0, tuple(groups), batch, {})], [recorder])
    return recorder.gradients[0]


@pytest.mark.parametrize("case", [case for case in EXPLORERS if "reward" not in case and "entropy" not in case])
def test_equal_rewards_give_no_gradient_at_all(case):
    """Exactly 0 where there is no KL term; with one, the gradient is that of the term, which is 0 at the reference."""
    groups = [
        make_group(*[make_rollout("a", tokens, reward=0.1) for tokens in ((6, 7, 1), (8, 1), (9, 9, 9, 1))]),
        make_group(*[make_rollout("b", tokens, reward=-2.0) for tokens in ((5, 1), (5, 6, 7, 8, 9))]),
    ]
    gradient = gradient_of(make_case(case), groups)
    assert gradient.abs().max() < 1e-7 if "k2" in case or "k3" in case else not gradient.any()
    assert gradient_of(make_case(case), random_groups()).any()


@pytest.mark.parametrize("name", ["dapo", "grpo", "dr-grpo", "gspo", "kl", "maxrl", "replay"])
def test_at_ratio_one_the_gradient_is_reinforce(name):
    """sum_t -A logp_t, weighted as the algorithm counts, whatever the clip."""
    groups, policy = random_groups(), make_policy()
    extra = {"kl_beta": 0.0} if name in ("kl", "grpo") else {}
    module = find_class("algorithms", name, Algorithm)(updates_per_step=1, dual_clip=1.001, **extra)
    batch = module.make_batch(groups, SAMPLING)
    rows = slow_logprobs(policy, batch)
    lengths = [len(row) for row in rows]
    share, count = {
        "grpo": (lambda n: 1 / n, len(rows)),
        "gspo": (lambda n: 1 / n, len(rows)),
        "dr-grpo": (lambda n: 1.0, len(rows) * SAMPLING.max_new_tokens),
        "maxrl": (lambda n: 1.0, len(rows) * SAMPLING.max_new_tokens),
    }.get(name, (lambda n: 1.0, sum(lengths)))
    total = 0.0
    for row, advantage in zip(rows, batch.advantages.tolist(), strict=True):
        total = total - share(len(row)) * advantage * row.sum() / count
    total.backward()
    assert relative_difference(gradient_of(module, groups), gradients(policy)) < 1e-5


LOG_RATIOS = (-500.0, -19.0, -3.0, 0.0, 0.2, 2.0, 3.0, 12.0, 19.0, 25.0, 500.0)


def token_gradients(module, advantage, log_ratio):
    """d loss / d logprob of one token each, old policy and engine at 0."""
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    rollout = make_rollout(completion=(6,), sampling_logprobs=[0.0])
    batch = replace(collate([rollout], [advantage]), old_logprobs=torch.zeros(1, 1))
    output = module.micro_batch_loss(TokenScores(logprobs, torch.zeros(1, 1)), batch)
    (gradient,) = torch.autograd.grad(output.loss.sum(), logprobs)
    return float(gradient)


@pytest.mark.parametrize("log_ratio", LOG_RATIOS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_by_default_no_token_has_more_than_ten_times_the_gradient_of_an_on_policy_one(name, log_ratio):
    module = find_class("algorithms", name, Algorithm)()
    for advantage in (-2.0, 2.0):
        assert abs(token_gradients(module, advantage, log_ratio)) <= 10 * abs(advantage)


@pytest.mark.parametrize("name", ["dapo", "grpo", "dr-grpo", "gspo", "kl", "maxrl", "replay"])
def test_dual_clip_null_is_the_papers_surrogate(name):
    """Through the command line: what TRL computes, at a log-ratio of 19 as well."""
    module = RLoopCLI(["--algo", name, "--algo.dual_clip=null"]).parts.algorithm
    assert module.dual_clip is None
    assert token_gradients(module, -1.0, 19.0) == pytest.approx(math.exp(19), rel=1e-4)
    default = RLoopCLI(["--algo", name]).parts.algorithm
    assert default.dual_clip == 10.0
    assert token_gradients(default, -1.0, 19.0) == 0.0


def test_dapo_with_equal_bounds_and_one_count_is_grpo_with_ppos_clip():
    """Completions of one length: token mean and sequence mean are the same, so that only the bound could differ."""
    rollouts = [make_rollout("a", (6 + i, 7, 8, i, 1), reward=float(i % 2)) for i in range(8)]
    groups = [make_group(*rollouts)]
    ours = gradient_of(DAPO(clip_eps_high=0.2, updates_per_step=1), groups, off_policy)
    assert relative_difference(ours, gradient_of(GRPO(), groups, off_policy)) < 1e-6
    wider = gradient_of(DAPO(clip_eps_high=0.9, updates_per_step=1), groups, off_policy)
    assert relative_difference(wider, ours) > 1e-3


@pytest.mark.parametrize(("cls", "plain"), [(GRPO, None), (KLConstrained, DAPO), (RFT, None)])
def test_without_beta_there_is_no_reference(cls, plain):
    """No copy of the weights, no metric, and the gradient of the same algorithm without the term, bit for bit."""
    settings = {} if cls is RFT else {"updates_per_step": 1}
    module, metrics, policy = cls(kl_beta=0.0, **settings), StepMetrics(), make_policy()
    groups = random_groups()
    maker = GRPO() if cls is RFT else module
    batch = maker.make_batch(groups, SAMPLING)
    recorder = GradientRecorder()
    fit(module, policy, [batch if cls is RFT else RolloutStep(0, (), batch, {})], [recorder, metrics])
    assert module.kl.reference is None
    assert sum(1 for _ in module.parameters()) == sum(1 for _ in policy.parameters())
    assert set(module.state_dict()) == {f"policy.{name}" for name in policy.state_dict()}
    assert "policy/kl_nats" not in metrics.steps[0]
    if plain is not None:
        assert torch.equal(recorder.gradients[0], gradient_of(plain(**settings), groups))


def test_a_term_with_a_small_beta_is_near_none():
    groups = random_groups()
    near = gradient_of(GRPO(kl_beta=1e-7), groups, off_policy)
    assert relative_difference(near, gradient_of(GRPO(), groups, off_policy)) < 1e-6


def test_replay_of_nothing_is_dapo_bit_for_bit():
    """Several updates a step, over steps: the same weights."""
    ended = []
    for module in (DAPO(updates_per_step=3, lr=0.01), Replay(updates_per_step=3, lr=0.01, replay_per_problem=0)):
        policy = make_policy()
        groups = [random_groups(seed=seed) for seed in range(3)]
        steps = [
            RolloutStep(i, tuple(g), module.make_batch(module.replayed(g, SAMPLING), SAMPLING), {})
            for i, g in enumerate(groups)
        ]
        fit(module, policy, steps)
        ended.append(weights(policy))
    assert torch.equal(*ended)
    assert not torch.equal(ended[0], weights(make_policy()))


def test_rft_with_weights_of_one_is_reinforce_with_advantages_of_one():
    """RFT is the policy gradient on experts alone: both divide by tokens."""
    groups = [make_group(make_rollout("a", (6, 7, 1), reward=1.0), make_rollout("a", (8, 1), reward=1.0))]

    class Ones(DAPO):
        def advantages(self, rewards):
            return torch.ones_like(rewards).float()

    module = Ones(updates_per_step=1)
    batch, recorder = module.make_batch(groups, SAMPLING), GradientRecorder()
    fit(RFT(), make_policy(), [batch], [recorder])
    assert relative_difference(recorder.gradients[0], gradient_of(module, groups)) < 1e-6


def test_every_algorithm_is_in_these_cases():
    assert {spec[1] for spec in EXPLORERS.values()} == set(ALGORITHMS)
