"""The one forward over many architectures, against each model's own forward: a row at a time, no padding."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from architectures import PACKED, PADDED, MeanOfNeighbours, make_architecture
from builders import gradients, make_model, make_tokenizer, random_batch, slow_entropies, slow_logprobs
from torch import Tensor
from transformers import Qwen2ForCausalLM

from rloop_lightning.model.policy import Policy
from rloop_lightning.types import RolloutBatch

# Rows that share prompts and rows that do not; the longest is six windows long.
LENGTHS = ((3, 5), (1, 9), (6, 1), (4, 12), (2, 2), (5, 7), (3, 3), (7, 24))


def batch_of_shared_prompts() -> RolloutBatch:
    batch = random_batch(LENGTHS, temperature=0.8)
    batch.input_ids[6, :3] = batch.input_ids[0, :3]
    batch.prompts[6] = batch.prompts[0]
    return batch


def by_parameter(policy: Policy) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return found


def assert_computes_as_its_own_model(policy: Policy) -> None:
    batch = batch_of_shared_prompts()
    weights = torch.randn(batch.loss_mask.shape, generator=torch.Generator().manual_seed(3))
    slow = slow_logprobs(policy, batch)
    sum((weights[i, : len(row)] * row).sum() for i, row in enumerate(slow)).backward()
    expected = by_parameter(policy)
    scores = policy.logprobs(batch)
    (weights * scores.logprobs).sum().backward()
    found = by_parameter(policy)
    for i, (row, entropies) in enumerate(zip(slow, slow_entropies(policy, batch), strict=True)):
        torch.testing.assert_close(scores.logprobs[i, : len(row)].double(), row.double(), rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(scores.entropy[i, : len(row)].double(), entropies.double(), rtol=1e-5, atol=2e-5)
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        # Per parameter, as a key's bias has a gradient of 0 but for rounding.
        bound = 1e-4 * max(float(gradient.abs().max()), 1e-2 * largest)
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=bound, msg=name)


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_model_computes_as_its_own_forward(name: str) -> None:
    policy = make_architecture(name)
    assert policy.packs
    assert_computes_as_its_own_model(policy)


@pytest.mark.parametrize("name", PADDED)
def test_a_model_that_packed_rows_would_be_wrong_for_computes_padded_ones(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rloop_lightning"):
        policy = make_architecture(name)
    assert not policy.packs
    assert f"{type(policy.model).__name__} computes padded rollouts: " in caplog.text
    assert_computes_as_its_own_model(policy)


def note(sizes: list[int], tensor: Tensor) -> Tensor:
    sizes.append(tensor.numel())
    return tensor


@pytest.mark.parametrize("name", [*PACKED, "Qwen3-Next"])
def test_gradient_checkpointing_changes_no_number_and_keeps_less(name: str) -> None:
    plain = make_architecture(name)
    sparing = Policy(plain.model, plain.tokenizer, gradient_checkpointing=True)
    assert sparing.packs == plain.packs
    batch, kept, found = batch_of_shared_prompts(), [], []
    for policy in (plain, sparing):
        policy.recomputes = policy is sparing
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(note, sizes), lambda tensor: tensor):
            logprobs = policy.logprobs(batch).logprobs
        assert not any(module.training for module in policy.model.modules())
        logprobs.sum().backward()
        found.append((logprobs.detach(), gradients(policy)))
        kept.append(sum(sizes))
        policy.zero_grad()
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)
    assert kept[1] < 0.7 * kept[0]


class DoubledLogits(Qwen2ForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_a_model_that_alters_its_logits_is_refused() -> None:
    altered = DoubledLogits(make_model().config).double()
    with pytest.raises(ValueError, match=r"DoubledLogits changes its logits"):
        Policy(altered, make_tokenizer())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["Llama", "Qwen3"])
def test_layers_that_see_neighbours_otherwise_are_found_in_any_dtype(architecture: str, dtype: torch.dtype) -> None:
    model = make_model(architecture, dtype=dtype)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert Policy(model, make_tokenizer()).packs
    for name, weight in model.state_dict().items():
        assert weight.dtype == before[name].dtype
        assert torch.equal(weight, before[name])
    other = make_model(architecture, dtype=dtype)
    other.model.layers[1].input_layernorm = MeanOfNeighbours(other.model.layers[1].input_layernorm)
    assert not Policy(other, make_tokenizer()).packs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding_is_no_difference(dtype: torch.dtype, seed: int) -> None:
    assert Policy(make_model("Qwen3", dtype=dtype, seed=seed), make_tokenizer()).packs


def test_a_saved_config_names_no_attention_of_ours(tmp_path: Any) -> None:
    Policy(make_model(), make_tokenizer()).save(tmp_path / "policy")
    assert "rloop" not in (tmp_path / "policy" / "config.json").read_text()


@pytest.mark.parametrize(
    ("settings", "weights"),
    [({"vocab_size": 25}, "small"), ({"vocab_size": 2**15 + 1, "hidden_size": 32}, "large")],
)
def test_the_head_computes_in_the_dtype_that_is_asked_for(settings: Mapping[str, int], weights: str) -> None:
    """`auto` is float32 for a small head, and bfloat16 under mixed precision for a large one."""
    model = make_model(dtype=torch.float32, **settings)
    found = {}
    for dtype in (None, torch.float32, torch.bfloat16):
        policy = Policy(model, make_tokenizer(), head_dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            found[dtype] = policy.logprobs(random_batch()).logprobs
    assert not torch.equal(found[torch.float32], found[torch.bfloat16])
    assert torch.equal(found[None], found[torch.float32 if weights == "small" else torch.bfloat16])
