"""RMSNorm and SwiGLU in fewer passes, against their formulas and against the modules that they stand in for."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from builders import make_model
from torch import Tensor, nn

from rloop_lightning.model.fused import fuse, rms_norm, swiglu


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def slow_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()


def slow_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return gate * gate.sigmoid() * up


FUNCTIONS = pytest.mark.parametrize(
    ("function", "slow", "shapes"),
    [
        (lambda x, weight: rms_norm(x, weight, 1e-3, x.dtype), slow_rms_norm, ((5, 3, 8), (8,))),
        (swiglu, slow_swiglu, ((5, 6), (5, 6))),
    ],
    ids=["rms_norm", "swiglu"],
)


@FUNCTIONS
def test_values_and_gradients_equal_the_formula(function: Any, slow: Any, shapes: Any) -> None:
    inputs = [random(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    torch.testing.assert_close(function(*inputs), slow(*inputs))
    with torch.no_grad():
        torch.testing.assert_close(function(*inputs), slow(*inputs))
    towards = random(*shapes[0], seed=7).detach()
    found, expected = (torch.autograd.grad((towards * f(*inputs)).sum(), inputs) for f in (function, slow))
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(function, inputs)


@FUNCTIONS
def test_bfloat16_comes_back_as_bfloat16(function: Any, slow: Any, shapes: Any) -> None:
    inputs = [random(*shape).detach().bfloat16().requires_grad_() for shape in shapes]
    found = function(*inputs)
    slopes = torch.autograd.grad(found.float().sum(), inputs)
    assert {found.dtype, *(slope.dtype for slope in slopes)} == {torch.bfloat16}
    torch.testing.assert_close(found.double(), slow(*(x.detach().double() for x in inputs)), rtol=0.02, atol=0.02)


def test_a_norm_computes_at_the_precision_of_its_input() -> None:
    x, weight = random(4, 16).detach().float(), random(16, seed=1).detach().float()
    torch.testing.assert_close(
        rms_norm(x, weight, 1e-3, torch.bfloat16), slow_rms_norm(x, weight).bfloat16(), rtol=0, atol=0
    )


def test_a_frozen_weight_needs_no_gradient() -> None:
    x, weight = random(4, 8), random(8, seed=1).detach()
    rms_norm(x, weight, 1e-3, x.dtype).sum().backward()
    assert x.grad is not None


def fused(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if "forward" in vars(module)}


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("Llama", {"input_layernorm", "post_attention_layernorm", "norm", "mlp"}),
        ("Qwen3", {"input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm", "mlp"}),
        ("Gemma2", set()),  # weighs by 1 + weight, and its activation is GELU
        ("Phi3", {"input_layernorm", "post_attention_layernorm", "norm"}),  # one product for gate and up
        ("GPTNeoX", set()),
    ],
)
def test_modules_that_compute_them_are_fused_and_no_others(architecture: str, expected: set[str]) -> None:
    model = make_model(architecture)
    fuse(model)
    assert {name.rpartition(".")[2] for name in fused(model)} == expected


def test_a_module_that_computes_otherwise_is_left_alone() -> None:
    model = make_model("Llama")
    model.model.norm.register_forward_hook(lambda module, inputs, output: 2 * output)
    other = model.model.layers[1].input_layernorm
    other.forward = lambda x: slow_rms_norm(x, other.weight)  # which has another eps
    model.model.layers[0].mlp.act_fn = nn.GELU()
    fuse(model)
    assert isinstance(vars(other)["forward"], type(lambda: None))
    assert "model.norm" not in fused(model)
    assert "model.layers.0.mlp" not in fused(model)
    assert "model.layers.1.mlp" in fused(model)


@pytest.mark.parametrize("copied_by", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_with_its_own_weights(copied_by: Any) -> None:
    """Processes that Lightning starts get a pickle."""
    model = make_model("Llama")
    fuse(model)
    copied = copied_by(model)
    ids = torch.arange(5)[None]
    before = model(input_ids=ids).logits
    with torch.no_grad():
        for weight in copied.parameters():
            weight.zero_()
    assert not copied(input_ids=ids).logits.any()
    assert torch.equal(model(input_ids=ids).logits, before)
