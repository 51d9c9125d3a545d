"""Routing replay against what the experts modules are given, and against a slow mixture that takes experts as told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import gradients, make_model, make_policy, make_tokenizer, random_batch, relative_difference
from moe import (
    ARCHITECTURES,
    EXPERTS,
    TOP_K,
    make_moe,
    make_moe_policy,
    modules_named,
    perturb,
    recorded,
    routers,
    rows_of,
    slow_replay,
    slow_weights,
    spread,
    watched,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rloop_lightning.model.config import PolicyConfig, policy_faults
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.routers import KNOWN
from rloop_lightning.model.routing_replay import RoutingError, routing_count
from rloop_lightning.types import RolloutBatch

EVERY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)


def same_sets(first: Tensor, second: Tensor) -> Tensor:
    return (first.long().sort(-1).values == second.long().sort(-1).values).all(-1)


def coefficients(batch: RolloutBatch) -> Tensor:
    """A different weight for every row and place, the same however the batch is cut."""
    places = torch.arange(batch.loss_mask.shape[1])
    return torch.sin(1.0 + 7 * batch.rows[:, None] + 3 * places).double() * batch.loss_mask


def update(policy: Policy, batch: RolloutBatch, *, backwards: bool = False) -> Tensor:
    """The gradient of an optimizer step's micro-batches."""
    policy.zero_grad()
    micro_batches = [micro for _, micro in policy.micro_batches(batch)]
    for micro in reversed(micro_batches) if backwards else micro_batches:
        with policy.replaying(micro):
            (coefficients(micro) * policy.logprobs(micro).logprobs).sum().backward()
    return gradients(policy)


@EVERY_ARCHITECTURE
def test_experts_modules_get_the_recorded_experts_with_the_current_routers_weights(architecture: str) -> None:
    policy = make_moe_policy(architecture)
    batch = recorded(policy)
    perturb(policy)
    with torch.no_grad(), watched(policy) as seen:
        scores = policy.logprobs(batch)
    assert batch.routed_experts is not None
    assert len(seen) == len(routers(policy.model)) == batch.routed_experts.shape[2] == 2
    for layer, (hidden, indices, weights) in enumerate(seen):
        told = rows_of(batch, batch.routed_experts[:, :, layer])
        for own, expected in zip(rows_of(batch, spread(batch, indices)), told, strict=True):
            assert own.tolist() == expected.tolist()
        expected = slow_weights(routers(policy.model)[layer], hidden, indices).gather(-1, indices)
        torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-7)
    # The test could fail: left alone, the perturbed routers choose others.
    assert scores.routed_experts is not None
    alone = torch.cat(rows_of(batch, same_sets(scores.routed_experts, batch.routed_experts)))
    assert 0.1 < 1 - float(alone.double().mean()) < 0.9
    with torch.no_grad():
        assert not torch.allclose(
            policy.logprobs(replace(batch, routed_experts=None)).logprobs, scores.logprobs, atol=1e-3
        )


@EVERY_ARCHITECTURE
def test_where_nothing_is_recorded_the_router_chooses_itself(architecture: str) -> None:
    policy = make_moe_policy(architecture)
    batch = recorded(policy)
    assert batch.routed_experts is not None
    perturb(policy)
    with torch.no_grad(), watched(policy) as seen:
        scores = policy.logprobs(batch)
    assert scores.routed_experts is not None
    behind = torch.arange(batch.input_ids.shape[1]) >= batch.lengths[:, None] - 1
    assert int(behind.sum()) > len(batch)
    for layer, (_, indices, _) in enumerate(seen):
        own = spread(batch, indices)[behind]
        assert own.tolist() == scores.routed_experts[:, :, layer][behind].tolist()


@EVERY_ARCHITECTURE
def test_logprobs_and_all_gradients_equal_a_slow_mixture_that_takes_the_same_experts(architecture: str) -> None:
    policy = make_moe_policy(architecture)
    batch = recorded(policy, random_batch(temperature=0.8))
    perturb(policy)
    with torch.no_grad():
        logprobs = policy.logprobs(batch).logprobs
    gradient = update(policy, batch)
    router_gradients = torch.cat([router.weight.grad.flatten() for router in routers(policy.model)])
    policy.zero_grad()
    rows = slow_replay(policy, batch)
    for own, expected in zip(logprobs, rows, strict=True):
        torch.testing.assert_close(own[: len(expected)].double(), expected, rtol=1e-5, atol=1e-5)
    weights = coefficients(batch)
    sum((weights[i, : len(row)] * row).sum() for i, row in enumerate(rows)).backward()  # type: ignore[union-attr]
    expected = torch.cat([router.weight.grad.flatten() for router in routers(policy.model)])
    assert float(expected.norm()) > 1e-2
    assert relative_difference(router_gradients, expected) < 1e-4
    assert relative_difference(gradient, gradients(policy)) < 1e-5


@EVERY_ARCHITECTURE
def test_replay_changes_nothing_while_the_policy_has_not_changed(architecture: str) -> None:
    policy = make_moe_policy(architecture)
    batch = recorded(policy)
    alone = replace(batch, routed_experts=None)
    with torch.no_grad():
        assert torch.equal(policy.logprobs(batch).logprobs, policy.logprobs(alone).logprobs)
    assert torch.equal(update(policy, batch), update(policy, alone))


def test_without_routing_replay_a_policy_has_no_hooks_and_the_same_logprobs() -> None:
    plain, replaying = make_moe_policy(routing_replay="none"), make_moe_policy(routing_replay="r3")
    assert plain.routing is None
    assert not any(router._forward_hooks for router in routers(plain.model))
    scores = plain.logprobs(random_batch())
    assert scores.routed_experts is None
    assert torch.equal(scores.logprobs, replaying.logprobs(random_batch()).logprobs)


def test_a_policy_without_routing_replay_refuses_experts() -> None:
    batch = recorded(make_moe_policy())
    with pytest.raises(ValueError, match=r"which a policy of --policy.routing_replay none can't do"):
        make_moe_policy(routing_replay="none").logprobs(batch)


def layers_of(policy: Policy) -> Any:
    return policy.model.model.layers


def by_torch(use_reentrant: bool) -> Callable[[Policy], None]:
    def wrap(policy: Policy) -> None:
        for layer in layers_of(policy):
            forward = layer.forward

            def recomputed(hidden: Tensor, *, forward: Any = forward, **kwargs: Any) -> Any:
                return checkpoint(lambda hidden: forward(hidden, **kwargs), hidden, use_reentrant=use_reentrant)

            layer.forward = recomputed

    return wrap


def by_hugging_face(policy: Policy) -> None:
    policy.model.gradient_checkpointing_enable()
    for layer in layers_of(policy):
        layer.training = True  # it recomputes in training mode alone; the modules in it stay as they are


RECOMPUTE = {"torch": by_torch(False), "torch reentrant": by_torch(True), "hugging face": by_hugging_face}


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_recomputed_layers_find_the_same_experts_in_any_order_of_micro_batches(
    architecture: str, recompute: str
) -> None:
    policy = make_moe_policy(architecture)
    batch = recorded(policy)
    perturb(policy)
    with watched(policy) as seen:
        whole = update(policy, batch)
    assert len(seen) == 2
    assert relative_difference(update(policy, replace(batch, routed_experts=None)), whole) > 0.1
    RECOMPUTE[recompute](policy)
    for max_tokens in (1, 40, 16384):
        policy.max_tokens_per_micro_batch = max_tokens
        micro_batches = len(list(policy.micro_batches(batch)))
        for backwards in (False, True):
            with watched(policy) as seen:
                gradient = update(policy, batch, backwards=backwards)
            assert len(seen) == 2 * 2 * micro_batches  # layers, forward and again in the backward pass
            assert relative_difference(gradient, whole) < 1e-6


def test_rows_may_stand_in_any_order() -> None:
    policy = make_moe_policy()
    batch = recorded(policy)
    perturb(policy)
    order = torch.tensor([5, 0, 7, 2, 6, 1, 4, 3])
    assert relative_difference(update(policy, batch.select(order)), update(policy, batch)) < 1e-6


def test_a_backward_pass_that_would_not_find_its_experts_is_refused() -> None:
    policy = make_moe_policy()
    batch = recorded(policy)
    other = recorded(policy, random_batch(seed=5))
    with pytest.raises(RoutingError, match=r"inside of Policy.replaying alone"):
        policy.logprobs(batch)
    with policy.replaying(batch), pytest.raises(RoutingError, match=r"only those of the batch that it was given"):
        policy.logprobs(other)
    with policy.replaying(batch), pytest.raises(RoutingError, match=r"only those of the batch that it was given"):
        policy.logprobs(replace(batch, routed_experts=None))
    with policy.replaying(batch), pytest.raises(RoutingError, match="two micro-batches"), policy.replaying(other):
        pass
    policy.logprobs(replace(batch, routed_experts=None))  # all of it left no trace


def test_a_layer_computed_anew_under_another_batchs_experts_is_refused() -> None:
    policy = make_moe_policy()
    by_torch(False)(policy)
    batch, other = recorded(policy), recorded(policy, random_batch(((2, 3),)))
    with policy.replaying(batch):
        loss = policy.logprobs(batch).logprobs.sum()
    with (
        policy.replaying(other),
        pytest.raises(RoutingError, match=r"passes belong inside of its own"),
    ):
        loss.backward()


def test_a_pass_without_gradients_inside_of_another_batchs_replay_leaves_it_alone() -> None:
    policy = make_moe_policy()
    batch = recorded(policy)
    perturb(policy)
    whole = update(policy, batch)
    by_torch(False)(policy)
    policy.zero_grad()
    with policy.replaying(batch):
        loss = (coefficients(batch) * policy.logprobs(batch).logprobs).sum()
        with torch.no_grad(), watched(policy) as seen:
            scores = policy.logprobs(random_batch(seed=3))
        assert scores.routed_experts is not None
        other = random_batch(seed=3)
        own = torch.cat(rows_of(other, scores.routed_experts[:, :, 0]))
        assert torch.cat(rows_of(other, spread(other, seen[0][1]))).tolist() == own.tolist()
        loss.backward()
    assert relative_difference(gradients(policy), whole) < 1e-6


def twice(block: Any) -> Callable[[Tensor], Tensor]:
    forward = block.forward
    return lambda hidden: forward(hidden) + forward(hidden)


def never(block: Any) -> Callable[[Tensor], Tensor]:
    return lambda hidden: hidden


def in_halves(block: Any) -> Callable[[Tensor], Tensor]:
    forward = block.forward
    return lambda hidden: torch.cat([forward(half) for half in hidden.tensor_split(2, dim=1)], dim=1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (twice, r"the router model\.layers\.1\.mlp\.gate was called twice in a forward pass"),
        (never, r"a forward pass left out model\.layers\.1\.mlp\.gate"),
        (in_halves, r"the router model\.layers\.1\.mlp\.gate got 40 tokens in a forward pass of 80"),
    ],
)
def test_every_position_is_used_exactly_once_in_a_forward_pass(spoil: Callable[[Any], Any], message: str) -> None:
    policy = make_moe_policy()
    batch = recorded(policy)
    block = modules_named(policy.model, "SparseMoeBlock")[1]
    block.forward = spoil(block)
    with policy.replaying(batch), pytest.raises(RoutingError, match=message):
        policy.logprobs(batch)
    with pytest.raises(RoutingError, match=message):
        recorded(policy)
    del block.forward
    with torch.no_grad():
        policy.logprobs(batch)


def test_layers_are_those_that_have_a_router() -> None:
    policy = make_moe_policy(num_hidden_layers=4, mlp_only_layers=[0, 2])
    batch = recorded(policy)
    assert batch.routed_experts is not None
    assert batch.routed_experts.shape == (*batch.input_ids.shape, 2, TOP_K)
    perturb(policy)
    with torch.no_grad(), watched(policy) as seen:
        policy.logprobs(batch)
    for layer, (_, indices, _) in enumerate(seen):
        told = torch.cat(rows_of(batch, batch.routed_experts[:, :, layer]))
        assert torch.cat(rows_of(batch, spread(batch, indices))).tolist() == told.tolist()


@pytest.mark.parametrize(("experts", "dtype"), [(8, torch.uint8), (256, torch.uint8), (257, torch.int16)])
def test_a_record_takes_a_byte_an_index_and_two_beyond_256_experts(experts: int, dtype: torch.dtype) -> None:
    policy = make_moe_policy(num_experts=experts, num_experts_per_tok=4, moe_intermediate_size=2)
    batch = recorded(policy)
    assert batch.routed_experts is not None
    assert batch.routed_experts.dtype == dtype
    assert batch.routed_experts.nbytes == batch.input_ids.numel() * 2 * 4 * dtype.itemsize
    assert 0 <= int(batch.routed_experts.min()) < int(batch.routed_experts.max()) < experts
    with torch.no_grad():
        assert torch.equal(
            policy.logprobs(batch).logprobs, policy.logprobs(replace(batch, routed_experts=None)).logprobs
        )


def test_a_deep_copy_replays_by_its_own_routers_and_state() -> None:
    policy = make_moe_policy()
    batch = recorded(policy)
    copied = perturb(copy.deepcopy(policy))
    with policy.replaying(batch), torch.no_grad(), watched(copied) as seen:
        alone = copied.logprobs(replace(batch, routed_experts=None)).logprobs
        replayed = copied.logprobs(batch).logprobs
    assert not torch.allclose(alone, replayed, atol=1e-3)
    hidden, indices, weights = seen[-1]
    expected = slow_weights(routers(copied.model)[1], hidden, indices).gather(-1, indices)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-7)


def test_mismatches_are_counted_as_sets_over_recorded_positions() -> None:
    # Two rows of 3 and 2 recorded tokens, two layers: 10 routings.
    batch = random_batch(((2, 2), (1, 2)))
    engine = torch.zeros(2, 4, 2, 2, dtype=torch.uint8)
    engine[..., 1] = 1
    old, own = engine.clone(), engine.clone()
    own[0, 0, 0] = torch.tensor([1, 0])  # the same set
    own[0, 1, 0] = torch.tensor([0, 2])
    own[1, 1] = torch.tensor([4, 5])  # in both layers
    own[:, 3] = own[1, 2] = 7  # behind what is recorded
    old[1, 1, 0] = torch.tensor([5, 4])
    batch = replace(batch, routed_experts=engine)
    assert int(routing_count(batch)) == 10
    r2, r3 = make_moe_policy(routing_replay="r2").routing, make_moe_policy(routing_replay="r3").routing
    assert r2 is not None
    assert r3 is not None

    def counts(found: dict[str, Tensor]) -> dict[str, int]:
        return {name.removeprefix("routing/"): int(value) for name, value in found.items()}

    assert counts(r2.mismatches(batch, own)) == {"old_current_mismatch": 3}
    assert counts(r3.mismatches(batch, own)) == {"engine_old_mismatch": 3, "engine_current_mismatch": 3}
    expected = {"engine_old_mismatch": 1, "old_current_mismatch": 2, "engine_current_mismatch": 3}
    assert counts(r3.mismatches(replace(batch, old_routed_experts=old), own)) == expected
    assert r3.mismatches(replace(batch, routed_experts=None), own) == {}


def engine_record(*shape: int, fill: int = 0) -> Tensor:
    return torch.full((8, 16, *shape), fill, dtype=torch.int16)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (None, "rollouts came without their experts; take another --engine"),
        (engine_record(3, TOP_K), r"with \(3, 2\) layers and experts of a token, where the policy has \(2, 2\)"),
        (engine_record(2, TOP_K, fill=EXPERTS), "with experts 8 to 8, where the policy has 8"),
        (engine_record(2, TOP_K, fill=-1), "with experts -1 to -1, where the policy has 8"),
    ],
)
def test_experts_that_do_not_fit_the_policy_are_refused(experts: Tensor | None, message: str) -> None:
    routing = make_moe_policy(routing_replay="r3").routing
    assert routing is not None
    good = replace(random_batch(), routed_experts=engine_record(2, TOP_K, fill=EXPERTS - 1))
    assert routing.admitted(good) is good
    with pytest.raises(RoutingError, match=f"--policy.routing_replay r3: .*{message}"):
        routing.admitted(replace(good, routed_experts=experts))


def test_a_model_without_known_routers_is_refused() -> None:
    known = ", ".join(KNOWN)
    with pytest.raises(ValueError, match=rf"type 'qwen2'; --policy.routing_replay takes {known}, leave it at none"):
        Policy(make_model(), make_tokenizer(), routing_replay="r2")
    with pytest.raises(ValueError, match=r"no layer has a router \(Qwen3MoeTopKRouter\)"):
        make_moe_policy(mlp_only_layers=[0, 1])


def test_load_takes_the_mode_and_refuses_a_dense_model_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_moe_policy("Olmoe", "none", dtype=torch.float32).save(tmp_path / "moe")
    make_policy(dtype=torch.float32).save(tmp_path / "dense")
    policy = Policy.load(PolicyConfig(str(tmp_path / "moe"), routing_replay="r3"))
    assert policy.routing is not None
    assert (policy.routing.mode, policy.routing.layers, policy.routing.expert_count) == ("r3", 2, EXPERTS)
    assert Policy.load(PolicyConfig(str(tmp_path / "moe"))).routing is None
    monkeypatch.setattr("rloop_lightning.model.source.load_model", None)
    dense = PolicyConfig(str(tmp_path / "dense"), routing_replay="r2")
    with pytest.raises(ValueError, match="no routers are known for model type 'qwen2'"):
        Policy.load(dense)
    assert len(policy_faults(dense)) == 1
    assert policy_faults(PolicyConfig(str(tmp_path / "dense"))) == []
    assert policy_faults(PolicyConfig(str(tmp_path / "moe"), routing_replay="r2")) == []


def test_routers_that_weigh_in_an_unknown_way_are_refused() -> None:
    model = make_moe()
    router = routers(model)[1]
    forward = router.forward

    def doubled(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, chosen = forward(hidden)
        return logits, 2 * weights, chosen

    router.forward = doubled
    with pytest.raises(ValueError, match=r"the router model\.layers\.1\.mlp\.gate computes other gate weights"):
        Policy(model, make_tokenizer(), routing_replay="r3")
