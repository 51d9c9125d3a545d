"""4-bit weights under an adapter: what is quantised, what is computed, and what is merged."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from builders import gradients, random_batch, relative_difference, slow_logprobs
from safetensors.torch import load_file

from rloop_lightning.model.config import PolicyConfig, embedded_model_path
from rloop_lightning.model.lora import LoraSettings, merged
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.quantization import count, dequantised, quantised_layers

LORA = LoraSettings(rank=4)


def load(dtype: str = "float32") -> Policy:
    """The embedded policy in 4 bits, with an adapter that is not zero."""
    policy = Policy.load(PolicyConfig(dtype=dtype, quantization="nf4", lora=LORA))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in policy.adapter.parameters.items():
            if ".lora_B." in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return policy


def test_linear_layers_are_nf4_with_doubly_quantised_scales() -> None:
    policy = load()
    layers = quantised_layers(policy.model)
    assert len(layers) == 7 * 4
    original = load_file(embedded_model_path() / "model.safetensors")
    for name, layer in layers.items():
        assert isinstance(layer, bitsandbytes.nn.Linear4bit)
        assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
        expected = original[f"{name.removesuffix('.base_layer')}.weight"]
        numbers = quantize_4bit(expected, quant_type="nf4", compress_statistics=True)
        assert torch.equal(dequantised(layer.weight), dequantize_4bit(*numbers))
    assert sum(map(count, policy.parameters())) == sum(weight.numel() for weight in original.values()) + 40_960
    others = [weight.dtype for weight in policy.parameters() if weight.dtype != torch.uint8]
    assert set(others) == {torch.float32}


@pytest.mark.parametrize("recomputes", [False, True])
def test_logprobs_and_gradients_are_those_of_the_dequantised_model(recomputes: bool) -> None:
    policy, batch = load(), random_batch()
    policy.recomputes = recomputes
    slopes = torch.linspace(-1, 1, int(batch.completion_mask.sum()))
    found = policy.logprobs(batch).logprobs[batch.completion_mask]
    (found * slopes).sum().backward()
    expected = torch.cat(slow_logprobs(policy, batch))
    by_packing = gradients(policy)
    policy.zero_grad()
    (expected * slopes).sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert relative_difference(by_packing, gradients(policy)) < 1e-5
    plain = Policy.load(PolicyConfig())
    plain.model.load_state_dict(merged(policy.adapter))
    scores = [one.scores_no_grad(batch).logprobs for one in (plain, policy)]
    torch.testing.assert_close(*scores, rtol=0, atol=5e-5)


def test_in_half_precision_products_are_half_and_the_adapter_is_not() -> None:
    policy, batch = load("bfloat16"), random_batch()
    assert policy.packs
    assert {layer.compute_dtype for layer in quantised_layers(policy.model).values()} == {torch.bfloat16}
    policy.logprobs(batch).logprobs.sum().backward()
    assert gradients(policy).dtype == torch.float32
    gap = policy.scores_no_grad(batch).logprobs - load().scores_no_grad(batch).logprobs
    assert float(gap.abs().mean()) < 0.1


def test_one_layout_of_the_weights_for_training_and_generation() -> None:
    """On a CPU with AVX-512 for bfloat16, bitsandbytes would change it without gradients."""
    policy = load("bfloat16")
    weights = [layer.weight.data.clone() for layer in quantised_layers(policy.model).values()]
    policy.scores_no_grad(random_batch())
    for before, layer in zip(weights, quantised_layers(policy.model).values(), strict=True):
        assert torch.equal(before, layer.weight.data)
