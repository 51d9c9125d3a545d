"""What the plan of a run says about memory, on a GPU in figures by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import make_architecture_model
from builders import make_model, make_policy, make_tokenizer

from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.run.memory_forecast import memory_lines, size_text


def lines(policy: Policy, device: str, *, optimizer: str = "torch.optim.AdamW", reference: bool = False) -> list[str]:
    parts: Any = SimpleNamespace(
        algorithm=SimpleNamespace(optimizer=optimizer, kl=SimpleNamespace(has_copy=reference)),
        engine=TorchEngine(max_new_tokens=20, max_rows=8),
        prompt_lengths=[("a", 5), ("b", 12)],
        problems_per_step=4,
        loop=SimpleNamespace(rollouts_per_problem=4),
    )
    return [text for _, text in memory_lines(parts, policy, torch.device(device))]


def test_weights_gradients_and_moments() -> None:
    policy = make_policy(dtype=torch.float32)
    weights = sum(weight.numel() for weight in policy.parameters())
    (held,) = lines(policy, "cpu")
    assert held == f"{size_text(16 * weights)} for weights, gradients, optimizer; activations, KV cache on top"
    (held,) = lines(policy, "cpu", optimizer="adamw8bit", reference=True)
    assert held.startswith(
        f"{size_text((4 + 4 + 2 + 4) * weights)} for weights, gradients, optimizer, reference policy"
    )


def test_on_a_gpu_an_update_and_generation_have_a_line_each() -> None:
    policy = Policy(make_model("Qwen3", dtype=torch.float32), make_tokenizer(), 4096)
    policy.mixed_precision = torch.bfloat16
    held, update, cache = lines(policy, "cuda")
    assert held.endswith("; besides, one of:")
    assert "for an update of 4,096 tokens at once (--policy.max_tokens_per_micro_batch)" in update
    # 8 rows of 12 + 20 tokens, keys and values of 2 layers of 2 heads of 8, in bfloat16
    assert (
        cache == f"{size_text(8 * 32 * 2 * 2 * 16 * 2)} for the KV cache of 8 rollouts of 32 tokens (--engine.max_rows)"
    )


def test_in_float32_no_figure_is_made_up_for_an_update() -> None:
    held, cache = lines(Policy(make_model("Qwen3", dtype=torch.float32), make_tokenizer()), "cuda")
    assert "update" not in held + cache


@pytest.mark.parametrize("name", ["Qwen3-MoE", "Qwen3-Next"])
def test_nor_for_layers_that_are_not_counted(name: str) -> None:
    policy = Policy(make_architecture_model(name), make_tokenizer())
    assert lines(policy, "cuda")[0].endswith("; activations, KV cache on top")
