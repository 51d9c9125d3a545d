"""The arithmetic of an update's memory, against the peaks that were measured on a GPU, and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.models import SIZES, make_model
from rloop_lightning.model.update_memory import ModelShape, update_memory

RESULTS = json.loads((Path(__file__).parents[2] / "benchmarks" / "results.json").read_text())
MEASURED = RESULTS["real on cuda"]["raw"]["updates"]


def shape_of(size: str) -> ModelShape:
    shape = ModelShape.of(make_model(SIZES[size], [1], device="meta"))
    assert shape is not None
    return shape


def slots(tokens: int, rollouts: int) -> int:
    """Each rollout with a copy of the prompt of 512 tokens."""
    return rollouts * ((tokens - 512) // rollouts + 512)


@pytest.mark.parametrize("name", MEASURED)
def test_it_is_near_the_peak_measured_on_a_gpu(name: str) -> None:
    cost: dict[str, Any] = MEASURED[name]
    tokens, rollouts = cost["shape"]["tokens"], cost["shape"]["rollouts"]
    memory = update_memory(
        shape_of(cost["model"]),
        tokens=tokens,
        slots=slots(tokens, rollouts),
        mixed=not cost["lora"],
        checkpointing=cost["checkpointing"],
        adapter_rank=cost["lora"],
    )
    assert memory.peak == pytest.approx(cost["peak_bytes"] - cost["resident_bytes"], rel=0.1)


def test_a_small_model_by_hand() -> None:
    shape = shape_of("toy-qwen3")  # 2 layers, hidden 32, 4 heads of 16, 2 key heads, MLP 48, 55 tokens
    assert shape == ModelShape(2, 32, 64, 32, 4, 48, 96, 2 * (2 * 32 * 96 + 3 * 32 * 48), 32 * 55)
    of_layer = 2 * 32 * (4 + 2) + 96 * 2 + 3 * 48 * 2 + 64 * 2 + (64 + 2 * 32) * 2 + 64 * 2 + 4 * 4
    plain = update_memory(shape, tokens=10, mixed=True, checkpointing=False)
    assert plain.stored == 2 * 10 * of_layer
    assert (plain.casts, plain.recomputed) == (2 * shape.layer_weights, 0)
    small = update_memory(shape, tokens=10, mixed=True, checkpointing=True)
    assert small.stored == 2 * 10 * (32 * 4 + 64 * 2 + 4 * 4)
    assert small.recomputed == 10 * of_layer


def test_half_precision_weights_need_no_copies() -> None:
    shape = shape_of("toy-qwen3")
    half = update_memory(shape, tokens=10, mixed=False, checkpointing=False)
    assert half.casts == 0
    assert half.stored < update_memory(shape, tokens=10, mixed=True, checkpointing=False).stored
    assert torch.bfloat16.itemsize == 2
