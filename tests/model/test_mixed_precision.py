"""bfloat16 products of float32 parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import make_architecture
from builders import GradientRecorder, fit, gradients, make_policy, random_batch, weights
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.engines.products import products_in
from rloop_lightning.model.policy import Policy


def scores_and_gradient(policy: Policy, *, mixed: bool) -> tuple[Tensor, Tensor]:
    policy.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        logprobs = policy.logprobs(random_batch()).logprobs
    logprobs.sum().backward()
    return logprobs.detach(), gradients(policy)


@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3", "Gemma2", "GPTNeoX"])
def test_mixed_precision_is_close_to_float32(architecture: str) -> None:
    policy = make_policy(architecture, dtype=torch.float32, initializer_range=0.1)
    exact, exact_gradient = scores_and_gradient(policy, mixed=False)
    mixed, mixed_gradient = scores_and_gradient(policy, mixed=True)
    assert mixed.dtype == mixed_gradient.dtype == torch.float32
    assert 1e-4 < float((mixed - exact).abs().max()) < 0.05
    assert float(torch.cosine_similarity(mixed_gradient, exact_gradient, dim=0)) > 0.998


@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3"])
def test_weights_that_are_cast_once_give_what_autocast_gives(architecture: str) -> None:
    policy = make_policy(architecture, dtype=torch.float32)
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            expected = policy.model.model(input_ids=ids).last_hidden_state
        before = {name: weight.data_ptr() for name, weight in policy.named_parameters()}
        with products_in(policy.model, torch.bfloat16):
            found = policy.model.model(input_ids=ids).last_hidden_state
    assert torch.equal(found, expected)
    assert {name: weight.data_ptr() for name, weight in policy.named_parameters()} == before


def test_weights_are_back_after_an_error() -> None:
    policy = make_policy(dtype=torch.float32)
    weight = policy.model.model.layers[0].mlp.up_proj.weight

    def fail() -> None:
        with products_in(policy.model, torch.bfloat16):
            raise KeyError(weight.dtype)

    with pytest.raises(KeyError, match="bfloat16"):
        fail()
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}


class TwoUpdates(RFT):
    """Two optimizer steps in one training step; keeps the weights behind each."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.weights: list[Tensor] = []
        for _ in range(2):
            self.update(batch)
            self.weights.append(weights(self.policy))


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
def test_the_second_update_of_a_step_computes_with_the_updated_weights(packs: bool) -> None:
    def run(start: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        policy = make_policy("Llama", dtype=torch.float32)
        if start is not None:
            vector_to_parameters(start, policy.parameters())
        policy.packs = packs
        module, recorder = TwoUpdates(lr=0.01, warmup_steps=0), GradientRecorder()
        fit(module, policy, [random_batch()], [recorder], precision="bf16-mixed")
        return module.weights, recorder.gradients

    (after_one, _), (first, second) = run()
    (_, _), (again, _) = run(start=after_one)
    assert torch.equal(second, again)  # a fresh run from the updated weights begins with the second gradient
    assert float(torch.cosine_similarity(first, second, dim=0)) < 0.99


@pytest.mark.parametrize("name", ["Qwen3-MoE", "GPT-OSS", "Gemma3", "DeepSeek-V3"])
def test_unusual_architectures_train_in_mixed_precision(name: str) -> None:
    policy = make_architecture(name)
    policy.float()
    with torch.autocast("cpu", torch.bfloat16):
        logprobs = policy.logprobs(random_batch()).logprobs
    logprobs.sum().backward()
    assert gradients(policy).isfinite().all()
