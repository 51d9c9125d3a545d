"""Adapters in a policy: logprobs and gradients, what is adapted, what is merged, half precision, state."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    gradients,
    make_model,
    make_rollout,
    make_tokenizer,
    random_batch,
    relative_difference,
    slow_logprobs,
)
from moe import make_moe, routers
from peft import LoraConfig, get_peft_model

from rloop_lightning.batching import collate
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.lora import Adapter, LoraSettings, add_adapter, merged
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem, RolloutBatch

SETTINGS = LoraSettings(rank=3, alpha=6)


def adapted(model: Any, settings: LoraSettings = SETTINGS) -> Policy:
    """A policy with an adapter that is not zero."""
    model.eval()
    adapter = add_adapter(model, settings)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in adapter.parameters.items():
            if ".lora_B." in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return Policy(model, make_tokenizer(), adapter=adapter)


def by_hand(policy: Policy, batch: RolloutBatch) -> torch.Tensor:
    """Logprobs row by row, of the whole model without packing, in one vector."""
    return torch.cat(slow_logprobs(policy, batch))


MODELS = {
    "Qwen2": lambda: make_model("Qwen2"),
    "Llama": lambda: make_model("Llama", tie_word_embeddings=True),
    "Qwen3Moe": lambda: make_moe("Qwen3Moe"),
    "Mixtral": lambda: make_moe("Mixtral"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recomputes", [False, True])
def test_logprobs_and_gradients_are_those_of_the_model_with_peft_s_layers(name: str, recomputes: bool) -> None:
    policy, batch = adapted(MODELS[name]()), random_batch()
    policy.recomputes = recomputes
    assert policy.packs
    slopes = torch.linspace(-1, 1, int(batch.completion_mask.sum()), dtype=torch.float64)
    expected = by_hand(policy, batch)
    (expected * slopes).sum().backward()
    by_peft = gradients(policy)
    policy.zero_grad()
    found = policy.logprobs(batch).logprobs[batch.completion_mask]
    (found.double() * slopes).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert relative_difference(gradients(policy), by_peft) < 1e-5
    trained = {key for key, weight in policy.model.named_parameters() if weight.grad is not None}
    assert trained == set(policy.adapter.parameters)


@pytest.mark.parametrize("name", MODELS)
def test_a_new_adapter_changes_nothing_and_off_is_the_base(name: str) -> None:
    batch, model = random_batch(), MODELS[name]()
    base = by_hand(Policy(copy.deepcopy(model), make_tokenizer()), batch)
    fresh = Policy(model, make_tokenizer(), adapter=add_adapter(model, SETTINGS))
    assert torch.equal(by_hand(fresh, batch), base)
    policy = adapted(MODELS[name]())
    assert float((by_hand(policy, batch) - base).abs().max()) > 0.01
    with policy.adapter.off():
        assert torch.equal(by_hand(policy, batch), base)


@pytest.mark.parametrize("name", MODELS)
def test_merged_weights_are_the_model_s_own_plus_s_b_a(name: str) -> None:
    policy, batch, plain = adapted(MODELS[name]()), random_batch(), MODELS[name]()
    before = {key: weight.clone() for key, weight in policy.model.named_parameters()}
    weights = merged(policy.adapter)
    assert all(torch.equal(weight, before[key]) for key, weight in policy.model.named_parameters())
    own = plain.state_dict()
    assert weights.keys() == own.keys()
    query = "model.layers.0.self_attn.q_proj"
    a, b = (before[f"{query}.lora_{letter}.default.weight"] for letter in "AB")
    torch.testing.assert_close(weights[f"{query}.weight"], own[f"{query}.weight"] + 6 / 3 * b @ a)
    plain.load_state_dict(weights)
    torch.testing.assert_close(by_hand(Policy(plain, make_tokenizer()), batch), by_hand(policy, batch))


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    model = make_model()
    add_adapter(model, LoraSettings(rank=4, alpha=6, rslora=True, targets=["q_proj"]))
    assert model.model.layers[0].self_attn.q_proj.scaling == {"default": 3.0}


@pytest.mark.parametrize("name", ["Qwen3Moe", "Mixtral", "Olmoe", "Qwen2Moe", "FlexOlmo"])
def test_all_linear_takes_the_experts_and_no_router(name: str) -> None:
    model = make_moe(name)
    before = [id(router) for router in routers(model)]
    adapter = add_adapter(model, SETTINGS)
    names = set(adapter.parameters)
    for layer in "q_proj", "o_proj", "experts":
        assert any(f".{layer}." in key for key in names)
    assert [id(router) for router in routers(model)] == before
    assert not any("gate." in key or "router" in key or "embed" in key or "lm_head" in key for key in names)
    assert any("experts.base_layer.lora_A" in key for key in names)  # both weights of the experts


def test_experts_and_layers_are_adapted_by_name() -> None:
    adapter = add_adapter(make_moe(), LoraSettings(rank=2, targets=["q_proj", "experts.down_proj"]))
    assert {key.split(".lora_")[0].partition("layers.")[2][2:] for key in adapter.parameters} == {
        "self_attn.q_proj",
        "mlp.experts",
    }


@pytest.mark.parametrize("target", ["gate", "mlp.gate", "embed_tokens", "lm_head", "mlp", "norm", "nothing"])
def test_what_may_not_be_adapted_is_refused(target: str) -> None:
    with pytest.raises(
        ValueError, match=r"--policy.lora.targets: .*; it takes experts.down_proj, experts.gate_up_proj"
    ):
        add_adapter(make_moe(), LoraSettings(rank=2, targets=["q_proj", target]))


def test_a_new_adapter_is_the_same_in_every_run_and_draws_no_global_numbers() -> None:
    adapters = []
    for seed in 1, 2:
        model = make_model()
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        adapters.append(add_adapter(model, SETTINGS).parameters)
        assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    first = next(iter(adapters[0].values()))
    assert first.abs().max() <= 1 / 32**0.5  # uniform within 1 / sqrt(inputs)


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3Moe"])
def test_in_half_precision_the_adapter_stays_float32(name: str) -> None:
    """A bfloat16 adapter would lose updates in rounding. Its products are in bfloat16, without float32 copies."""
    policy, batch = adapted(MODELS[name]().to(torch.bfloat16)), random_batch()
    assert {weight.dtype for weight in policy.adapter.parameters.values()} == {torch.float32}
    seen = set()
    layer = policy.model.model.layers[0].self_attn.q_proj.lora_A.default
    layer.register_forward_hook(lambda module, args, output: seen.add((args[0].dtype, output.dtype)))
    wide = adapted(MODELS[name]().to(torch.bfloat16).float())
    found, expected = (one.scores_no_grad(batch).logprobs for one in (policy, wide))
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    assert float((found - expected).abs().mean()) < 0.05
    policy.logprobs(batch).logprobs.sum().backward()
    assert gradients(policy).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_engine_generates_with_the_adapter(dtype: torch.dtype) -> None:
    policy = adapted(make_model(dtype=dtype))
    before = {name: weight.dtype for name, weight in policy.model.named_parameters()}
    engine = TorchEngine(max_new_tokens=6)
    engine.bind(policy)
    rollouts = engine.generate([Problem(id="a", prompt="1 2 3=", answer="")] * 4, 4, engine.sampling(seed=0))
    assert {name: weight.dtype for name, weight in policy.model.named_parameters()} == before
    gaps = []
    for rollout in rollouts:
        row = make_rollout(prompt=rollout.prompt_ids, completion=rollout.completion_ids)
        batch = collate([row], np.zeros(1))
        found = policy.scores_no_grad(batch).logprobs[0, : len(rollout.completion_ids)]
        gaps.append(float((found - torch.tensor(rollout.sampling_logprobs)).abs().mean()))
    assert max(gaps) < (1e-4 if dtype == torch.float32 else 0.1)


def test_the_state_is_the_adapter_alone() -> None:
    policy, model = adapted(make_model()), make_model()
    other = Policy(model, make_tokenizer(), adapter=add_adapter(model, SETTINGS))
    state = policy.state_dict()
    assert {name.removeprefix("model.") for name in state} == set(policy.adapter.parameters)
    other.load_state_dict(state)
    batch = random_batch()
    assert torch.equal(other.scores_no_grad(batch).logprobs, policy.scores_no_grad(batch).logprobs)
    name = next(iter(state))
    with pytest.raises(RuntimeError, match=name):
        other.load_state_dict({key: value for key, value in state.items() if key != name})


def test_a_copy_of_a_policy_has_an_adapter_of_its_own() -> None:
    policy, batch = adapted(make_model()), random_batch()
    other = copy.deepcopy(policy)
    before = policy.scores_no_grad(batch).logprobs
    with torch.no_grad():
        for weight in other.adapter.parameters.values():
            weight.zero_()
    assert torch.equal(policy.scores_no_grad(batch).logprobs, before)
    assert not torch.equal(other.scores_no_grad(batch).logprobs, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_dropout": 0.1}, "lora_dropout must be 0, because dropout makes logprobs random"),
        ({"use_dora": True}, "only plain LoRA is supported, without DoRA"),
        ({"bias": "all"}, "only plain LoRA is supported"),
    ],
)
def test_other_adapters_of_a_peft_model_are_refused(changes: dict[str, Any], message: str) -> None:
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], **changes))
    with pytest.raises(ValueError, match=message):
        Adapter(model)
