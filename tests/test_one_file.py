"""examples/one_file.py: its formulas by hand, and that it trains."""

from __future__ import annotations

import importlib.util
import math
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from builders import make_group, make_policy, make_rollout, slow_logprobs, weights

from rloop_lightning import Countdown, Group, Policy, PolicyConfig, Rollout, RolloutBatch, TorchEngine, collate

PAGE = Path(__file__).parents[1] / "examples" / "one_file.py"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_file", PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mean_reward(steps: Sequence[Sequence[Group]]) -> float:
    return float(np.mean([rollout.reward for groups in steps for group in groups for rollout in group.rollouts]))


@torch.no_grad()
def mean_loss(policy: Policy, batch: RolloutBatch) -> float:
    return -float(torch.cat(slow_logprobs(policy, batch)).mean())


def test_it_is_one_page() -> None:
    assert len(PAGE.read_text().splitlines()) <= 150


def test_advantages_are_rewards_in_standard_deviations_from_their_group(page: ModuleType) -> None:
    advantages = page.group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
    expected = torch.tensor([[1.5, -0.5, -0.5, -0.5], [math.sqrt(3) / 2] * 2 + [-math.sqrt(3) / 2] * 2])
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-5)


def test_the_clip_acts_above_for_good_and_below_for_bad_tokens(page: ModuleType) -> None:
    """rho = 2, 1, 1/2 of each row; A = 3 and -3. Clipped to [0.8, 1.28] where that is the smaller objective."""
    rollouts = [make_rollout(sampling_logprobs=[-2.0, -2.0, -2.0]) for _ in range(2)]
    logprobs = torch.full((2, 3), -2.0) + torch.tensor([2.0, 1.0, 0.5]).log()
    loss = page.dapo_loss(logprobs, collate(rollouts, [3.0, -3.0]))
    torch.testing.assert_close(loss, torch.tensor([[-3 * 1.28, -3.0, -1.5], [6.0, 3.0, 3 * 0.8]]))


def test_an_update_descends_the_mean_over_all_tokens_of_the_mini_batch(page: ModuleType) -> None:
    policy = make_policy()
    batch = collate([make_rollout(completion=(6, 7, 1)), make_rollout(completion=(8, 1))], [1.0, 1.0])
    before = mean_loss(policy, batch)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    assert page.update(policy, optimizer, batch, page.rft_loss) == pytest.approx(before, rel=1e-6)
    assert mean_loss(policy, batch) < before - 0.01
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_the_expert_set_holds_each_success_of_hard_problems_once(page: ModuleType) -> None:
    def group(problem: str, successes: Sequence[int], size: int) -> Group:
        right = [make_rollout(problem, (6, number, 1), reward=1.0) for number in successes]
        return make_group(*right, *[make_rollout(problem, (5, 1)) for _ in range(size - len(right))])

    pool = [
        [group("hard", [7, 8], 20), group("solved often", [7, 8, 9], 20)],
        [group("hard", [8], 20), group("never solved", [], 20), group("on the threshold", [7], 10)],
    ]
    experts: list[Rollout] = page.expert_set(pool, 0.1)
    assert [(expert.problem_id, expert.completion_ids.tolist()) for expert in experts] == [
        ("hard", [6, 7, 1]),
        ("hard", [6, 8, 1]),
    ]
    many = [[group("hard", [i % 20 for i in range(20)], 400)]]
    assert len(page.expert_set(many, 0.1)) == page.MAX_PER_PROBLEM


def test_exploration_raises_the_reward_and_consolidation_fits_the_experts(page: ModuleType) -> None:
    problems, engine = Countdown(train_size=12).train(), TorchEngine(max_new_tokens=64)
    phi, base = Policy.load(PolicyConfig()), weights(Policy.load(PolicyConfig()))
    engine.bind(phi)
    pool = page.explore(phi, engine, problems, steps=12, P=6, G=8, seed=0)
    assert len(pool) == 12
    assert all(len(groups) >= 6 and len(groups) % 6 == 0 for groups in pool)
    assert mean_reward(pool[-4:]) > mean_reward(pool[:4]) + 0.05

    experts = page.expert_set(pool, 0.3)
    assert len(experts) >= 4
    assert all(expert.success for expert in experts)
    theta_1 = Policy.load(PolicyConfig())
    losses = page.consolidate(theta_1, experts)
    assert len(losses) == page.EPOCHS * math.ceil(len(experts) / page.ROLLOUTS_PER_UPDATE)
    assert losses[-1] < losses[0] - 0.05
    assert not weights(theta_1).equal(base)
    assert not weights(theta_1).equal(weights(phi))


def test_consolidation_begins_with_the_initial_policy(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    began_with = []
    consolidate = page.consolidate

    def watched(policy: Policy, experts: Sequence[Rollout]) -> list[float]:
        began_with.append(weights(policy))
        return consolidate(policy, experts)

    monkeypatch.setattr(page, "consolidate", watched)
    results = page.main(steps=1, P=6, G=4, problems=24, samples=2, max_success_rate=0.9)
    (initial,) = began_with
    assert initial.equal(weights(Policy.load(PolicyConfig())))
    assert results["consolidated"] != results["base"]


def test_it_runs_as_a_command_and_prints_its_three_policies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--steps=1", "--P=6", "--G=4", "--problems=24", "--samples=2", "--max_success_rate=0.9"]
    monkeypatch.setattr(sys, "argv", [str(PAGE), *sizes])
    runpy.run_path(str(PAGE), run_name="__main__")
    said = capsys.readouterr().out
    assert re.search(r"^rollout step   1: reward 0\.\d{3}, loss [+-]0\.\d{4}$", said, flags=re.MULTILINE)
    table = re.findall(r"^(\w+) +pass@1 (\d\.\d{3})   pass@2 (\d\.\d{3})$", said, flags=re.MULTILINE)
    assert [name for name, _, _ in table] == ["base", "explored", "consolidated"]
    assert all(0 < float(pass_1) <= float(pass_2) <= 1 for _, pass_1, pass_2 in table)
