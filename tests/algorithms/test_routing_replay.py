"""Routing replay in whole rollout steps: which experts compute what, under every algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import StepMetrics, fit, random_batch, weights
from moe import EXPERTS, TOP_K, make_moe_policy, perturb, rows_of, spread, watched
from torch import Tensor

from rloop_lightning.algorithms import ALGORITHMS
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.grpo import GRPO
from rloop_lightning.algorithms.reference import Reference
from rloop_lightning.cli.registry import find_class
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.routing_replay import RoutingError
from rloop_lightning.types import RolloutBatch, RolloutStep

SHARES = 2


def step_of(batch: RolloutBatch) -> RolloutStep:
    return RolloutStep(0, (), batch, {})


def with_engine_experts(batch: RolloutBatch, seed: int = 0) -> RolloutBatch:
    """Experts at random, two different ones a routing: an engine that no policy here would agree with."""
    scores = torch.rand(*batch.input_ids.shape, 2, EXPERTS, generator=torch.Generator().manual_seed(seed))
    return replace(batch, routed_experts=scores.topk(TOP_K).indices.to(torch.uint8))


def taken_in(seen: Sequence[tuple[Tensor, ...]], batch: RolloutBatch) -> list[list[Any]]:
    """What each forward pass took at the recorded positions of its rows, layer by layer."""
    assert len(seen) % 2 == 0
    passes = [torch.stack([seen[i][1], seen[i + 1][1]], dim=1) for i in range(0, len(seen), 2)]
    return [[row.tolist() for row in rows_of(batch, spread(batch, one))] for one in passes]


def run(policy: Policy, batch: RolloutBatch, **settings: Any) -> tuple[list[tuple[Tensor, ...]], dict[str, float]]:
    """One rollout step of `SHARES` updates, large enough to change what routers choose."""
    metrics = StepMetrics()
    algorithm = DAPO(**{"updates_per_step": SHARES, "lr": 0.05, "warmup_steps": 0, **settings})
    with watched(policy) as seen:
        fit(algorithm, policy, [step_of(batch)], [metrics])
    return seen, metrics.steps[0]


# Two shares of one row each, in one shape, so that passes can be compared position by position.
TWINS = random_batch(((3, 9), (3, 9)))


def test_r2_replays_in_an_update_what_the_old_policy_chose_before_the_first() -> None:
    policy, before = make_moe_policy(routing_replay="r2"), make_moe_policy(routing_replay="r2")
    seen, metrics = run(policy, TWINS)
    first, second = (TWINS.select(torch.tensor([row])) for row in (0, 1))
    old, update_1, update_2 = taken_in(seen, first)
    with torch.no_grad():
        chosen = before.logprobs(second).routed_experts
        now = policy.logprobs(second).routed_experts
    assert chosen is not None
    assert now is not None
    expected = [row.tolist() for row in rows_of(second, chosen)]
    assert old == expected
    assert update_2 == expected
    assert update_1 != expected  # another row
    assert [row.tolist() for row in rows_of(second, now)] != expected  # the test could fail
    assert 0 < metrics["routing/old_current_mismatch"] < 1
    assert not {"routing/engine_old_mismatch", "routing/engine_current_mismatch"} & metrics.keys()


def test_r2_of_one_update_is_no_replay() -> None:
    r2, none = make_moe_policy(routing_replay="r2"), make_moe_policy(routing_replay="none")
    _, metrics = run(r2, TWINS, updates_per_step=1)
    run(none, TWINS, updates_per_step=1)
    assert torch.equal(weights(r2), weights(none))
    assert not [name for name in metrics if name.startswith("routing/")]


def test_r2_does_not_replay_what_an_engine_reports_unasked() -> None:
    asked, unasked = make_moe_policy(routing_replay="r2"), make_moe_policy(routing_replay="r2")
    run(asked, TWINS)
    run(unasked, with_engine_experts(TWINS))
    assert torch.equal(weights(asked), weights(unasked))


def test_r3_replays_the_engines_experts_in_the_old_pass_and_in_every_update() -> None:
    policy = make_moe_policy(routing_replay="r3")
    batch = with_engine_experts(TWINS)
    assert batch.routed_experts is not None
    seen, metrics = run(policy, batch)
    first, second = ([row.tolist()] for row in rows_of(batch, batch.routed_experts))
    assert taken_in(seen, batch.select(torch.tensor([0]))) == [second, first, second]
    assert metrics["routing/engine_old_mismatch"] > 0.5
    assert metrics["routing/engine_current_mismatch"] > 0.5
    assert 0 < metrics["routing/old_current_mismatch"] < metrics["routing/engine_old_mismatch"]


def test_the_mismatches_of_r3_are_shares_of_token_and_layer() -> None:
    """At a learning rate that changes nothing, by counting sets in Python."""
    policy = make_moe_policy(routing_replay="r3")
    batch = with_engine_experts(random_batch())
    assert batch.routed_experts is not None
    with torch.no_grad():
        own = policy.logprobs(batch).routed_experts
    assert own is not None
    shares = []
    for rows in torch.arange(len(batch)).tensor_split(SHARES):
        pairs = [
            (set(engine.tolist()), set(chosen.tolist()))
            for row in rows.tolist()
            for engine_row, own_row in [(rows_of(batch, batch.routed_experts)[row], rows_of(batch, own)[row])]
            for engine, chosen in zip(engine_row.flatten(0, 1), own_row.flatten(0, 1), strict=True)
        ]
        shares.append(sum(engine != chosen for engine, chosen in pairs) / len(pairs))
    for max_tokens in (1, 16384):
        policy.max_tokens_per_micro_batch = max_tokens
        _, metrics = run(policy, batch, lr=1e-12)
        assert metrics["routing/engine_old_mismatch"] == pytest.approx(sum(shares) / SHARES)
        assert metrics["routing/engine_current_mismatch"] == pytest.approx(sum(shares) / SHARES)
        assert metrics["routing/old_current_mismatch"] == 0


@pytest.mark.parametrize("mode", ["r2", "r3"])
def test_the_policy_after_a_rollout_step_does_not_depend_on_the_micro_batch(mode: str) -> None:
    batch = with_engine_experts(random_batch()) if mode == "r3" else random_batch()
    after = []
    for max_tokens in (1, 40, 16384):
        policy = make_moe_policy(routing_replay=mode, max_tokens=max_tokens)
        # As fixed a step for every weight would turn a gradient's rounding into a whole step.
        run(policy, batch, max_grad_norm=0.0, beta1=0.0, lr=1e-3)
        after.append(weights(policy))
    start = weights(make_moe_policy(routing_replay=mode))
    for other in after[1:]:
        assert float((other - after[0]).norm()) < 0.02 * float((after[0] - start).norm())


def test_r3_without_a_record_ends_the_run() -> None:
    with pytest.raises(RoutingError, match="rollouts came without their experts"):
        run(make_moe_policy(routing_replay="r3"), TWINS)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("mode", ["r2", "r3"])
def test_every_algorithm_replays(name: str, mode: str) -> None:
    policy = make_moe_policy(routing_replay=mode)
    settings = {"replay_per_problem": 0} if name == "replay" else {}
    algorithm = find_class("algorithms", name, Algorithm)(updates_per_step=2, lr=0.05, warmup_steps=0, **settings)
    metrics = StepMetrics()
    batch = replace(with_engine_experts(TWINS), max_new_tokens=9)
    batch = replace(batch, groups=torch.zeros(2, dtype=torch.int64))
    with watched(policy) as seen:
        fit(algorithm, policy, [step_of(batch)], [metrics])
    passes = taken_in(seen, batch.select(torch.tensor([0])))
    assert passes[0] == passes[-1]  # the second share: its old pass, and its update
    assert metrics.steps[0]["routing/old_current_mismatch"] > 0


def test_the_reference_of_a_kl_term_computes_with_experts_of_its_own_choice() -> None:
    policy = make_moe_policy(routing_replay="r3")
    batch = with_engine_experts(TWINS)
    reference = Reference(policy)
    with torch.no_grad():
        alone = policy.logprobs(replace(batch, routed_experts=None)).logprobs
        replayed = policy.logprobs(batch).logprobs
    perturb(policy)
    with policy.replaying(batch):
        policy.logprobs(batch).logprobs.sum().backward()
        torch.testing.assert_close(reference.logprobs(batch), alone)
    assert not torch.allclose(alone, replayed, atol=1e-2)


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_a_kl_term_and_routing_replay_go_together(kl_in: str) -> None:
    policy = make_moe_policy(routing_replay="r3")
    metrics = StepMetrics()
    batch = with_engine_experts(TWINS)
    batch = replace(batch, groups=torch.zeros(2, dtype=torch.int64))
    algorithm = GRPO(kl_beta=0.1, kl_in=kl_in, updates_per_step=2, lr=0.05, warmup_steps=0)
    fit(algorithm, policy, [step_of(batch)], [metrics])
    assert (
        metrics.steps[0]["policy/kl_nats"] > 0
    )  # the policy computes with the engine's experts, its reference doesn't
    assert metrics.steps[0]["routing/engine_old_mismatch"] > 0.5
