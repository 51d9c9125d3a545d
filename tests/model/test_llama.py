"""llama.py against Hugging Face's own forward, plain autograd, and models that it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import (
    GradientRecorder,
    fit,
    gradients,
    make_model,
    make_policy,
    random_batch,
    slow_logprobs,
    weights,
)
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.model import llama
from rloop_lightning.model.llama import Llama, normalise, rotate, swiglu
from rloop_lightning.model.policy import Policy

# --- which models


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen2", {"tie_word_embeddings": False}),
        ("Qwen2", {"use_sliding_window": False, "sliding_window": 6}),
        ("Llama", {}),
        ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("Llama", {"num_key_value_heads": 4, "hidden_act": "swish"}),
        ("Llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
        ("Mistral", {"sliding_window": None}),
        ("Qwen3", {"head_dim": 16}),
        ("Qwen3", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ],
)
def test_llama_like_models_are_computed_as_by_hugging_face(architecture: str, changes: dict[str, Any]) -> None:
    policy, batch = make_policy(architecture, **changes), random_batch(temperature=0.8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():  # norms of 1 and biases of 0 would hide what is done with them
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator)).add_(0.01)
    assert policy.llama is not None
    found = policy.logprobs(batch).logprobs
    found.sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    policy.zero_grad()
    expected = slow_logprobs(policy, batch)
    sum(row.sum() for row in expected).backward()
    for row, logprobs in enumerate(expected):
        torch.testing.assert_close(found[row, : len(logprobs)].double(), logprobs, rtol=1e-5, atol=1e-5)
    for name, parameter in policy.named_parameters():
        # Per parameter: a share of the largest, as a key's bias has a gradient of 0 but for rounding.
        largest = max(float(parameter.grad.abs().max()), 1e-2)
        torch.testing.assert_close(ours[name], parameter.grad, rtol=0, atol=1e-4 * largest, msg=name)


class Adapter(nn.Linear):
    """What adapters and quantised layers are."""


def swap(path: str, make: Callable[[nn.Linear], nn.Module]) -> Callable[[Any], None]:
    """Put another module in the place of one."""

    def change(model: Any) -> None:
        model.set_submodule(path, make(model.get_submodule(path)))

    return change


def linear_like(kind: type[nn.Linear], *, bias: bool) -> Callable[[nn.Linear], nn.Linear]:
    return lambda old: kind(old.in_features, old.out_features, bias=bias, dtype=old.weight.dtype)


def set_eps(path: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.get_submodule(path).variance_epsilon = 0.1

    return change


def as_it_is(model: Any) -> None: ...


LAST_MLP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("architecture", "changes", "change"),
    [
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, as_it_is),
        ("Mistral", {"sliding_window": 4096}, as_it_is),
        ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}, as_it_is),
        ("Mixtral", {"num_local_experts": 4}, as_it_is),
        ("Llama", {"attention_bias": True}, as_it_is),
        ("Llama", {"mlp_bias": True}, as_it_is),
        ("Llama", {"hidden_act": "gelu"}, as_it_is),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, as_it_is),
        ("Gemma2", {}, as_it_is),
        ("GPTNeoX", {}, as_it_is),
        ("Llama", {}, swap(LAST_MLP, linear_like(Adapter, bias=False))),
        ("Llama", {}, swap("model.layers.1.self_attn.k_proj", linear_like(Adapter, bias=False))),
        ("Llama", {}, swap("model.layers.1.self_attn.k_proj", linear_like(nn.Linear, bias=True))),
        ("Qwen2", {}, swap("model.layers.0.self_attn.v_proj", linear_like(nn.Linear, bias=False))),
        ("Llama", {}, swap("lm_head", linear_like(nn.Linear, bias=True))),
        ("Llama", {}, swap("lm_head", linear_like(Adapter, bias=False))),
        ("Llama", {}, set_eps("model.layers.1.post_attention_layernorm")),
        ("Qwen3", {}, set_eps("model.layers.0.self_attn.k_norm")),
        ("Llama", {}, swap("model.norm", lambda old: nn.LayerNorm(32, dtype=torch.float64))),
    ],
)
def test_models_of_other_modules_are_left_alone(
    architecture: str, changes: dict[str, Any], change: Callable[[Any], None]
) -> None:
    model = make_model(architecture, **changes)
    change(model)
    assert not llama._is_llama_like(model)
    assert Llama.of(model) is None


# Its queries grow with their positions, from the ninth on.
SCALED_BEHIND_8_TOKENS = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 8.0,
    "original_max_position_embeddings": 8,
    "llama_4_scaling_beta": 5.0,
}


def double_the_output(path: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.get_submodule(path).register_forward_hook(lambda module, inputs, output: 2 * output)

    return change


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "changes", "change"),
    [
        ("Ministral3", {"rope_parameters": SCALED_BEHIND_8_TOKENS}, as_it_is),
        ("Granite", {"residual_multiplier": 0.5}, as_it_is),
        ("Granite", {"embedding_multiplier": 3.0}, as_it_is),
        ("Granite", {"logits_scaling": 4.0}, as_it_is),
        ("Llama", {}, double_the_output("lm_head")),
        ("Llama", {}, double_the_output("model.layers.1.self_attn.v_proj")),
        ("Qwen3", {}, double_the_output("model.layers.0.mlp")),
    ],
)
def test_models_of_the_same_modules_that_compute_otherwise_are_left_alone(
    architecture: str, changes: dict[str, Any], change: Callable[[Any], None], dtype: torch.dtype
) -> None:
    model = make_model(architecture, dtype=dtype, **changes)
    change(model)
    assert llama._is_llama_like(model)
    assert Llama.of(model) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_rounding_is_no_disagreement(dtype: torch.dtype, seed: int) -> None:
    assert Llama.of(make_model("Qwen3", dtype=dtype, seed=seed)) is not None


# --- its functions


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def slow_normalise(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()


def slow_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return gate * gate.sigmoid() * up


ANGLES = random(5, 1, 4, seed=1).detach()
ROTATION = torch.polar(torch.full_like(ANGLES, 1.2), ANGLES)  # of a length that is not 1, as scaled positions have it


def slow_rotate(x: Tensor) -> Tensor:
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = ROTATION.real, ROTATION.imag
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


FUNCTIONS = pytest.mark.parametrize(
    ("function", "slow", "shape"),
    [
        (lambda x: normalise(x, 1e-3, x.dtype), slow_normalise, (5, 3, 8)),
        (swiglu, slow_swiglu, (5, 12)),
        (lambda x: rotate(x, ROTATION), slow_rotate, (5, 3, 8)),
    ],
    ids=["normalise", "swiglu", "rotate"],
)


@FUNCTIONS
def test_values_and_gradients_equal_the_formula(function: Any, slow: Any, shape: tuple[int, ...]) -> None:
    x, towards = random(*shape), random(*slow(random(*shape)).shape, seed=2).detach()
    torch.testing.assert_close(function(x), slow(x))
    (found,), (expected,) = (torch.autograd.grad((towards * f(x)).sum(), x) for f in (function, slow))
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(function, (x,))


@FUNCTIONS
def test_bfloat16_comes_back_as_bfloat16(function: Any, slow: Any, shape: tuple[int, ...]) -> None:
    x = random(*shape).detach().bfloat16().requires_grad_()
    found = function(x)
    (gradient,) = torch.autograd.grad(found.float().sum(), x)
    assert found.dtype == gradient.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), slow(x.detach().double()), rtol=0.02, atol=0.02)


def test_normalise_computes_at_the_precision_of_its_input() -> None:
    x = random(4, 16).detach().float()
    torch.testing.assert_close(normalise(x, 1e-3, torch.bfloat16), slow_normalise(x).bfloat16(), rtol=0, atol=0)


# --- bfloat16 products of float32 parameters


def scores_and_gradient(policy: Policy, *, mixed: bool) -> tuple[Tensor, Tensor]:
    policy.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        logprobs = policy.logprobs(random_batch()).logprobs
    logprobs.sum().backward()
    return logprobs.detach(), gradients(policy)


@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3"])
def test_mixed_precision_is_close_to_float32(architecture: str) -> None:
    policy = make_policy(architecture, dtype=torch.float32, initializer_range=0.1)
    exact, exact_gradient = scores_and_gradient(policy, mixed=False)
    mixed, mixed_gradient = scores_and_gradient(policy, mixed=True)
    assert mixed.dtype == mixed_gradient.dtype == torch.float32
    assert 1e-4 < float((mixed - exact).abs().max()) < 0.05
    assert float(torch.cosine_similarity(mixed_gradient, exact_gradient, dim=0)) > 0.999


class TwoUpdates(RFT):
    """Two optimizer steps in one training step; keeps the weights behind each."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.weights: list[Tensor] = []
        for _ in range(2):
            self.update(batch)
            self.weights.append(weights(self.policy))


@pytest.mark.parametrize("packed", [True, False], ids=["llama", "hugging face"])
def test_the_second_update_of_a_step_computes_with_the_updated_weights(packed: bool) -> None:
    def run(start: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        policy = make_policy("Llama", dtype=torch.float32)
        if start is not None:
            vector_to_parameters(start, policy.parameters())
        policy.llama = policy.llama if packed else None
        module, recorder = TwoUpdates(lr=0.01, warmup_steps=0), GradientRecorder()
        fit(module, policy, [random_batch()], [recorder], precision="bf16-mixed")
        return module.weights, recorder.gradients

    (after_one, _), (first, second) = run()
    (_, _), (again, _) = run(start=after_one)
    assert torch.equal(second, again)  # a fresh run from the updated weights begins with the second gradient
    assert float(torch.cosine_similarity(first, second, dim=0)) < 0.99
