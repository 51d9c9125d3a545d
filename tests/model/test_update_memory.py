"""The arithmetic of an update's memory, against peaks that were measured on a GPU and against what autograd stores.

On a CPU, the tensors that autograd stores are counted in a real forward pass, each storage once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_model, make_tokenizer
from moe import make_moe
from torch import Tensor

from benchmarks.models import SIZES
from benchmarks.models import make_model as make_sized
from rloop_lightning.batching import collate
from rloop_lightning.model.attention_memory import PackedRows, attention_memory
from rloop_lightning.model.block_attention import LONGEST_FOR_PRODUCTS
from rloop_lightning.model.lora import LoraSettings, add_adapter
from rloop_lightning.model.model_shape import Experts, ModelShape
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.policy_weights import PolicyWeights
from rloop_lightning.model.update_memory import Products, update_memory
from rloop_lightning.types import Rollout, RolloutBatch

RESULTS = json.loads((Path(__file__).parents[2] / "benchmarks" / "results.json").read_text())
MEASURED = RESULTS["real on cuda"]["raw"]["updates"]
WIDE = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3}


def shape_of(model: Any) -> ModelShape:
    shape = ModelShape.of(model)
    assert shape is not None
    return shape


@pytest.mark.parametrize("name", MEASURED)
def test_it_is_near_the_peak_measured_on_a_gpu(name: str) -> None:
    cost: dict[str, Any] = MEASURED[name]
    tokens, rollouts, rank = cost["shape"]["tokens"], cost["shape"]["rollouts"], cost["lora"]
    memory = update_memory(
        shape_of(make_sized(SIZES[cost["model"]], [1], device="meta")),
        PackedRows(prompts=1, prompt=512, rollouts=rollouts, completion=(tokens - 512) // rollouts),
        Products(
            "cuda",
            weights=torch.bfloat16 if rank else torch.float32,
            products=torch.bfloat16,
            checkpointing=cost["checkpointing"],
            adapted=7 * rank,
            trains_all=not rank,
            quantised=cost.get("quantized", False),
        ),
    )
    assert memory.peak == pytest.approx(cost["peak_bytes"] - cost["resident_bytes"], rel=0.06)


def test_a_small_model_by_hand() -> None:
    shape = shape_of(make_sized(SIZES["toy-qwen3"], [1], device="meta"))
    # 2 layers, hidden 32, 4 heads of 16, 2 key heads, MLP 48, 55 tokens, tied
    layer = 2 * 32 * 96 + 3 * 32 * 48
    assert shape == ModelShape(2, 32, 64, 32, 4, 48, 96, 2 * layer, 32 * 55, tied=True, largest=2048)
    of_layer = 2 * 32 * (4 + 2) + 96 * 2 + 3 * 48 * 2 + 64 * 2 + (64 + 2 * 32) * 2 + 64 * 2 + 4 * 4
    rows = PackedRows(prompts=1, prompt=4, rollouts=1, completion=6)
    plain = update_memory(shape, rows, Products("cuda", torch.float32, torch.bfloat16))
    assert plain.stored == 2 * 10 * of_layer
    assert (plain.casts, plain.recomputed) == (2 * shape.layer_weights, 0)
    small = update_memory(shape, rows, Products("cuda", torch.float32, torch.bfloat16, checkpointing=True))
    assert small.stored == 2 * 10 * (32 * 4 + 64 * 2 + 4 * 4)
    assert (small.casts, small.recomputed) == (shape.layer_weights, 10 * of_layer)


def test_half_precision_weights_need_no_copies() -> None:
    shape = shape_of(make_sized(SIZES["toy-qwen3"], [1], device="meta"))
    rows = PackedRows(prompts=1, prompt=4, rollouts=1, completion=6)
    half = update_memory(shape, rows, Products("cuda", torch.bfloat16, torch.bfloat16))
    assert half.casts == 0
    assert half.stored < update_memory(shape, rows, Products("cuda", torch.float32, torch.bfloat16)).stored


@pytest.mark.parametrize("architecture", ["Qwen3Moe", "Mixtral", "Olmoe", "Qwen2Moe"])
def test_the_experts_of_a_shape(architecture: str) -> None:
    model = make_moe(architecture)
    shape = shape_of(model)
    width = model.config.intermediate_size if architecture in ("Mixtral", "Olmoe") else 16
    layers = model.config.num_hidden_layers
    assert shape.experts == Experts(layers, 8, 2, width, shared=16 if architecture == "Qwen2Moe" else 0)
    held = sum(weight.numel() for name, weight in model.named_parameters() if "experts." in name)
    shared = sum(weight.numel() for name, weight in model.named_parameters() if "shared_expert." in name)
    assert layers * shape.expert_weights == held
    assert shape.layer_weights >= shared


@pytest.mark.parametrize("architecture", ["Gemma", "GPT2"])
def test_other_layers_are_not_counted(architecture: str) -> None:
    assert ModelShape.of(make_model(architecture)) is None


def batch_of(rows: PackedRows, vocabulary: int) -> RolloutBatch:
    rng = np.random.default_rng(0)
    prompts = rng.integers(2, vocabulary, (rows.prompts, rows.prompt))
    rollouts = [
        Rollout(
            problem_id="",
            prompt_ids=prompts[number % rows.prompts],
            completion_ids=rng.integers(2, vocabulary, rows.completion),
            sampling_logprobs=np.full(rows.completion, -1.0, dtype=np.float32),
            text="",
            finish_reason="length",
        )
        for number in range(rows.rollouts)
    ]
    return collate(rollouts, np.ones(rows.rollouts))


@contextmanager
def stored_by_autograd(policy: Policy) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd stores in the block, without those of the weights."""
    held = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}
    found: dict[int, int] = {}
    alive = []  # so that no other tensor gets the address of one that was freed

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


@pytest.mark.parametrize(("prompt", "completion"), [(20, 90), (40, 500)])
@pytest.mark.parametrize("kind", ["full", "lora", "experts", "experts with lora", "bf16-mixed", "bfloat16"])
def test_on_a_cpu_it_is_what_autograd_stores(kind: str, prompt: int, completion: int) -> None:
    settings = {**WIDE, "max_position_embeddings": 1024, "dtype": torch.float32, "head_dim": 24}
    if kind == "bfloat16":
        settings["dtype"] = torch.bfloat16
    experts = kind.startswith("experts")
    model = make_moe(**settings, moe_intermediate_size=64) if experts else make_model("Qwen3", **settings)
    adapter = add_adapter(model, LoraSettings(rank=8)) if "lora" in kind else None
    policy = Policy(model, make_tokenizer(), 2**30, adapter=adapter)
    mixed = kind == "bf16-mixed"
    policy.mixed_precision = torch.bfloat16 if mixed else None
    weights, rows = PolicyWeights.of(policy), PackedRows(2, prompt, 8, completion)
    products = Products(
        "cpu",
        policy.model.dtype,
        policy.compute_dtype,
        adapted=weights.adapted,
        adapts_experts=weights.adapts_experts,
        trains_all=adapter is None,
    )
    memory = update_memory(shape_of(model), rows, products)
    batch = batch_of(rows, 25)
    # As Lightning's precision plugin does, without a cache of cast weights.
    cast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if mixed else nullcontext()
    with cast, stored_by_autograd(policy) as found:
        policy.logprobs(batch)
    states = rows.predicting * shape_of(model).hidden * policy.model.dtype.itemsize  # which the head stores
    expected = memory.stored + memory.shared + memory.casts + states
    if prompt + completion <= LONGEST_FOR_PRODUCTS:  # these products hold their masks themselves
        expected -= attention_memory(shape_of(model), rows, device="cpu", dtype=policy.compute_dtype).shared
    assert sum(found.values()) == pytest.approx(expected, rel=0.06)
