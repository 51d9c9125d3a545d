"""The experts that TorchEngine reports under R3 against those of the training engine's own forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_policy
from moe import ARCHITECTURES, TOP_K, make_moe_policy, perturb, rows_of, spread, watched

from rloop_lightning.batching import collate
from rloop_lightning.engines import decoding
from rloop_lightning.engines.rows import Rows
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem, Rollout

# Of different lengths, so that prompts are padded.
PROBLEMS = [Problem(id=f"p{i}", prompt=prompt, answer="") for i, prompt in enumerate(["7*3=", "1", "12+4=16", "(2"])]
N = 6


def generate(policy: Policy, **settings: int) -> list[Rollout]:
    engine = TorchEngine(**{"max_new_tokens": 24, **settings})
    engine.bind(policy)
    return engine.generate(PROBLEMS, N, engine.sampling(0))


@torch.no_grad()
def assert_reported_as_trained(policy: Policy, rollouts: list[Rollout]) -> None:
    """What the engine reports is what routers choose in one right-padded pass over prompts and completions."""
    assert policy.routing is not None
    batch = policy.routing.admitted(collate(rollouts, [0.0] * len(rollouts)))
    with policy.routing.forward_pass(batch.input_ids.numel()) as passed:
        policy.model(batch.input_ids, use_cache=False)
    chosen = passed.chosen.unflatten(0, batch.input_ids.shape)
    for rollout, expected in zip(rollouts, rows_of(batch, chosen), strict=True):
        assert rollout.routed_experts is not None
        assert rollout.routed_experts.dtype == np.uint8
        assert (
            rollout.routed_experts.nbytes
            == (len(rollout.prompt_ids) + rollout.length - 1) * policy.routing.layers * TOP_K
        )
        assert rollout.routed_experts.tolist() == expected.tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("rows_enter")
@pytest.mark.parametrize("max_rows", [512, 13, 4], ids=["all at once", "more enter", "inside problems"])
def test_reported_experts_are_those_of_the_training_forward(
    architecture: str, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_moe_policy(architecture, "r3")
    calls = {"select": 0, "replace": 0}
    for name in calls:
        method = getattr(Rows, name)

        def counted(*args: Any, _name: str = name, _method: Callable[..., None] = method) -> None:
            calls[_name] += 1
            _method(*args)

        monkeypatch.setattr(Rows, name, counted)
    rollouts = generate(policy, max_rows=max_rows)
    assert calls["select"] > 1  # the first repeats the prompts; any other is a compaction
    assert (calls["replace"] > 0) == (max_rows < N * len(PROBLEMS))
    assert len({rollout.length for rollout in rollouts}) > 5
    assert_reported_as_trained(policy, rollouts)


@pytest.mark.parametrize("compact_below", [0.0, 1.0], ids=["never compacted", "compacted at once"])
def test_reported_experts_do_not_depend_on_compaction(compact_below: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_COMPACT_BELOW", compact_below)
    policy = make_moe_policy("Qwen3Moe", "r3")
    assert_reported_as_trained(policy, generate(policy))


def test_completions_of_one_token_have_their_prompts_experts() -> None:
    policy = make_moe_policy("Qwen3Moe", "r3")
    rollouts = generate(policy, max_new_tokens=1)
    assert_reported_as_trained(policy, rollouts)
    first, second = rollouts[0].routed_experts, rollouts[1].routed_experts
    assert first is not None
    assert second is not None
    assert len(first) == len(rollouts[0].prompt_ids)
    assert not np.shares_memory(first, second)


def test_a_perturbed_policy_computes_with_what_the_engine_reported() -> None:
    policy = make_moe_policy("Mixtral", "r3")
    rollouts = generate(policy)
    batch = collate(rollouts, [0.0] * len(rollouts))
    assert batch.routed_experts is not None
    perturb(policy)
    with torch.no_grad(), watched(policy) as seen:
        policy.logprobs(batch)
    for layer, (_, indices, _) in enumerate(seen):
        own = spread(batch, indices)
        for row, rollout in zip(rows_of(batch, own), rollouts, strict=True):
            assert rollout.routed_experts is not None
            assert row.tolist() == rollout.routed_experts[:, layer].tolist()


def test_sampling_is_the_same_with_and_without_a_record_and_only_r3_keeps_one() -> None:
    completions = []
    for mode in ("none", "r2", "r3"):
        rollouts = generate(make_moe_policy("Qwen3Moe", mode))
        assert all((rollout.routed_experts is not None) == (mode == "r3") for rollout in rollouts)
        completions.append([rollout.completion_ids.tolist() for rollout in rollouts])
    assert completions[0] == completions[1] == completions[2]
    engine = TorchEngine(max_new_tokens=4)
    engine.bind(make_moe_policy("Qwen3Moe", "r3"))
    unreported = replace(engine.sampling(0), report_routed_experts=False)
    assert all(rollout.routed_experts is None for rollout in engine.generate(PROBLEMS, 2, unreported))
    dense = make_policy()
    assert all(rollout.routed_experts is None for rollout in generate(dense))


@torch.no_grad()
def test_grouped_products_in_single_precision_report_and_replay_too() -> None:
    """The experts' default implementation, which has no float64: equal up to what rounding decides."""
    policy = make_moe_policy("Qwen3Moe", "r3", dtype=torch.float32)
    assert policy.routing is not None
    assert policy.model.config._experts_implementation == "grouped_mm"
    rollouts = generate(policy)
    batch = collate(rollouts, [0.0] * len(rollouts))
    scores = policy.logprobs(batch)
    assert scores.routed_experts is not None
    assert int(policy.routing.mismatches(batch, scores.routed_experts)["routing/engine_current_mismatch"]) <= 2
    gap = (scores.logprobs - batch.sampling_logprobs).abs() * batch.loss_mask
    assert float(gap.max()) < 1e-3
    perturb(policy)
    with watched(policy) as seen:
        policy.logprobs(batch)
    taken = torch.stack([spread(batch, indices) for _, indices, _ in seen], dim=2)
    assert int(policy.routing.mismatches(batch, taken)["routing/engine_current_mismatch"]) == 0


def test_an_engine_in_bfloat16_reports_what_it_computed_with_not_what_the_trainer_would_choose() -> None:
    policy = make_moe_policy("Qwen3Moe", "r3", dtype=torch.float32)
    assert policy.routing is not None
    engine = TorchEngine(max_new_tokens=24, dtype="bfloat16")
    engine.bind(policy)
    with watched(policy) as seen:
        (rollout,) = engine.generate(PROBLEMS[2:3], 1, engine.sampling(0))
    # One row: the passes of both layers are its prompt's, then those of its tokens, in their order.
    computed = torch.stack([torch.cat([indices for _, indices, _ in seen[layer::2]]) for layer in (0, 1)], dim=1)
    assert rollout.routed_experts is not None
    assert rollout.routed_experts.tolist() == computed.tolist()
    rollouts = engine.generate(PROBLEMS, N, engine.sampling(0))
    batch = collate(rollouts, [0.0] * len(rollouts))
    with torch.no_grad():
        own = policy.logprobs(batch).routed_experts
    assert own is not None
    assert int(policy.routing.mismatches(batch, own)["routing/engine_old_mismatch"]) > 2
