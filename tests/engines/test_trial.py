"""The trial of generation at the start of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import PACKED, PADDED, MeanOfNeighbours, make_architecture
from builders import make_model, make_tokenizer

from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.policy import Policy

NAMES = sorted({*PACKED, *PADDED} - {"Bloom"})  # in float64, Bloom's own mask makes left padding NaN


@pytest.mark.parametrize("name", NAMES)
def test_models_that_generate_as_they_train_pass(name: str) -> None:
    assert TorchEngine().validate_with(make_architecture(name)) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("architecture", ["Qwen2", "Gemma2", "Qwen3"])
def test_rounding_is_no_fault(architecture: str, seed: int) -> None:
    policy = Policy(make_model(architecture, seed=seed, dtype=torch.bfloat16), make_tokenizer())
    assert TorchEngine().validate_with(policy) == []


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("Mamba", {"state_size": 4}, "TypeError: TorchEngine needs a model with a KV cache"),
        ("MiniMax", {"num_local_experts": 2}, "MiniMax uses cache of its own"),
    ],
)
def test_a_model_without_a_cache_of_rows_is_named(architecture: str, settings: Any, reason: str) -> None:
    policy = Policy(make_model(architecture, dtype=torch.float32, **settings), make_tokenizer())
    (fault,) = TorchEngine().validate_with(policy)
    assert fault.startswith(f"--policy.model: TorchEngine can't generate with {architecture}ForCausalLM: {reason}")
    assert fault.endswith("; take another model")


def test_a_model_that_decodes_otherwise_than_it_trains_is_refused() -> None:
    model = make_model("Llama", dtype=torch.float32)
    model.model.layers[1].input_layernorm = MeanOfNeighbours(model.model.layers[1].input_layernorm)
    (fault,) = TorchEngine().validate_with(Policy(model, make_tokenizer()))
    assert "LlamaForCausalLM: decoded logprobs part from those of a whole forward pass by " in fault


def test_flash_attention_is_not_tried_on_a_cpu() -> None:
    policy = Policy(make_model(), make_tokenizer())
    policy.model.config._attn_implementation = "rloop_flash_attention_2"
    assert TorchEngine().validate_with(policy) == []
