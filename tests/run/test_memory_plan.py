"""The memory plan: its bars by hand, the budgets that fit, and what it advises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from builders import make_policy
from moe import make_moe

from rloop_lightning.algorithms.optimizer import state_bytes
from rloop_lightning.engines.rows import Rows, most_columns
from rloop_lightning.model.attention_memory import PackedRows
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.lora import LoraSettings, add_adapter
from rloop_lightning.model.model_shape import ModelShape
from rloop_lightning.model.policy_weights import PolicyWeights
from rloop_lightning.model.quantization import nf4
from rloop_lightning.model.update_memory import Products
from rloop_lightning.run.memory_advice import advices
from rloop_lightning.run.memory_plan import MemoryPlan, Moments, Phase, Setup
from rloop_lightning.run.plan_config import PlanConfig, memory_bytes
from rloop_lightning.run.plan_text import size_text

GIB = 2**30


def model_7b() -> Any:
    """Of the widths of Qwen2.5-7B."""
    config = transformers.Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def plan_of(model: Any, policy: PolicyConfig, *, tokens: int = 4096, rows: int = 64, **settings: Any) -> MemoryPlan:
    weights, shape = PolicyWeights.planned(model, policy), ModelShape.of(model)
    assert shape is not None
    dtype = getattr(torch, policy.dtype)
    products = Products(
        "cuda",
        dtype,
        torch.bfloat16,
        checkpointing=policy.gradient_checkpointing,
        adapted=weights.adapted,
        trains_all=not policy.lora.rank,
        quantised=policy.quantization != "none",
    )
    phase = Phase("exploration", settings.pop("moments", Moments(8, 8)), settings.pop("reference", False), 64, 8)
    setup = Setup(products, (phase,), tokens, rows, prompt=512, completion=1024, generation=torch.bfloat16)
    return MemoryPlan(shape, weights, setup).with_(**settings)


def test_a_7b_model_trained_whole() -> None:
    model = model_7b()
    numbers = sum(weight.numel() for weight in model.parameters())
    bar = plan_of(model, PolicyConfig(dtype="bfloat16"), reference=True).training()
    held = {name: bar.parts[name] / numbers for name in ("weights", "optimizer", "gradients", "reference policy")}
    assert held == {"weights": 2, "optimizer": 8, "gradients": 4, "reference policy": 2}
    assert bar.total == pytest.approx(sum(bar.parts.values()))


def test_generation_holds_no_gradients_and_casts_float32_weights() -> None:
    model = model_7b()
    plan = plan_of(model, PolicyConfig())
    bar = plan.generation()
    assert bar is not None
    assert "gradients" not in bar.parts
    embeddings = 152_064 * 3584
    matrices = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2) - embeddings  # head included
    assert bar.parts["weights cast"] == 2 * matrices
    assert bar.parts["KV cache"] == 64 * most_columns(512 + 1024) * 28 * 2 * 512 * 2
    assert plan_of(model, PolicyConfig(dtype="bfloat16")).generation().parts["weights cast"] == 0  # type: ignore[union-attr]
    assert plan.with_(generation=None).generation() is None


@pytest.mark.parametrize(("prompt", "completion"), [(5, 3), (40, 200), (300, 90)])
@pytest.mark.parametrize("enters", [False, True])
def test_the_cache_has_the_planned_columns_at_most(prompt: int, completion: int, enters: bool) -> None:
    """Rows of one age, and rows that begin as others end, with rows that outlive them."""
    policy = make_policy()
    short = [[5] * 2]
    with torch.inference_mode():
        rows = Rows(policy, [[3] * prompt, *short], completion, torch.float64, later=short if enters else ())
        for step in range(3 * completion if enters else completion - 1):
            rows.append(torch.tensor([3, 4]))
            if enters and step % completion == completion // 2:
                rows.replace(torch.tensor([0]), [[3] * prompt], torch.tensor([0]))
            if enters and step % 7 == 0:
                rows.replace(torch.tensor([1]), short, torch.tensor([0]))
    (capacity,) = {layer.capacity for layer in rows._cache.layers}
    planned = most_columns(prompt + completion) if enters else prompt + completion
    assert capacity <= planned
    assert enters or capacity >= prompt + completion - 1


def test_paged_moments_are_on_the_host_of_a_gpu_only() -> None:
    model = model_7b()
    paged = plan_of(model, PolicyConfig(dtype="bfloat16"), moments=Moments(2, 8, paged=True))
    assert paged.training().parts["optimizer"] == 0
    products = Products("cpu", torch.bfloat16, torch.bfloat16)
    assert paged.with_(products=products).training().parts["optimizer"] > 2 * 7e9


def test_offloaded_moments_are_on_a_gpu_during_a_step_alone() -> None:
    model = model_7b()
    plain = plan_of(model, PolicyConfig(dtype="bfloat16")).training()
    few = plan_of(model, PolicyConfig(dtype="bfloat16"), moments=Moments(8, 8, offloaded=True)).training()
    assert few.parts == {**plain.parts, "optimizer": 0}
    many = plan_of(model, PolicyConfig(dtype="bfloat16"), moments=Moments(500, 8, offloaded=True)).training()
    embedding = 152_064 * 3584  # the largest weight, whose moments a step has with its weights and gradient in float32
    assert many.parts["activations"] == (8 + 500) * embedding
    assert many.parts["logits and head"] == 0


def test_the_budgets_that_fit_are_the_largest() -> None:
    plan = plan_of(model_7b(), PolicyConfig(dtype="bfloat16", lora=LoraSettings(rank=32)))
    tokens, rows = plan.tokens_within(30 * GIB), plan.rows_within(30 * GIB)
    assert tokens is not None
    assert rows is not None
    assert plan.with_(tokens=tokens).training().total <= 30 * GIB < plan.with_(tokens=tokens + 1536).training().total
    assert plan.with_(rows=rows).generation().total <= 30 * GIB  # type: ignore[union-attr]
    assert plan.with_(rows=rows + 1).generation().total > 30 * GIB  # type: ignore[union-attr]
    assert plan.tokens_within(10 * GIB) is None
    assert plan.rows_within(10 * GIB) is None
    assert plan.tokens_within(1e15) == plan.most_tokens == 64 * 1024 + 8 * 512


@pytest.mark.parametrize("kind", ["full", "lora", "lora of experts", "some layers", "nf4"])
def test_weights_are_counted_as_they_are_once_loaded(kind: str, tmp_path: Any) -> None:
    model = make_moe(dtype=torch.float32) if "experts" in kind else make_policy(dtype=torch.float32).model
    targets: Any = ["q_proj", "down_proj"] if kind == "some layers" else "all-linear"
    lora = LoraSettings(rank=0 if kind == "full" else 4, targets=targets)
    planned = PolicyWeights.planned(model, PolicyConfig(lora=lora, quantization="nf4" if kind == "nf4" else "none"))
    if kind == "nf4":
        model.save_pretrained(tmp_path)
        settings = nf4(torch.float32, model)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings)
    adapter = None if kind == "full" else add_adapter(model, lora)
    policy: Any = type("Loaded", (), {"model": model, "adapter": adapter})
    loaded = PolicyWeights.of(policy)
    assert sorted(planned.trained) == sorted(loaded.trained)
    assert planned.frozen == pytest.approx(loaded.frozen)
    assert (planned.cast, planned.adapted) == (loaded.cast, loaded.adapted)
    assert (planned.itemsize, planned.adapts_experts) == (loaded.itemsize, loaded.adapts_experts)


def test_advice_fits_and_is_the_cheapest() -> None:
    model, policy = model_7b(), PolicyConfig(dtype="bfloat16")
    plan = plan_of(model, policy, tokens=65_536)
    for limit in (24 * GIB, 60 * GIB, 100 * GIB, 200 * GIB):
        found = advices(plan, policy, model, limit, mixed=True)
        assert found, limit
        for flags in found:
            words = flags.split()
            given = dict(zip(words[::2], words[1::2], strict=True))
            changed = PolicyConfig(
                dtype="bfloat16",
                gradient_checkpointing="--policy.gradient_checkpointing" in given,
                lora=LoraSettings(rank=int(given.get("--policy.lora.rank", 0))),
                quantization=given.get("--policy.quantization", "none"),  # type: ignore[arg-type]
            )
            eighth = Moments(2 + 8 / 256, 8) if "--algo.optimizer" in given else Moments(8, 8)
            then = plan_of(
                model,
                changed,
                tokens=int(given.get("--policy.max_tokens_per_micro_batch", 65_536)),
                rows=int(given.get("--engine.max_rows", 64)),
                moments=eighth,
            )
            if "--engine.max_new_tokens" in given:
                then = then.with_(completion=int(given["--engine.max_new_tokens"]))
            assert then.fits(limit)
    # Whole in 200 GiB with smaller micro-batches; in 100 GiB with moments in 8 bits; in 24 GiB with an adapter alone.
    assert advices(plan, policy, model, 200 * GIB, mixed=True)[0].startswith("--policy.max_tokens_per_micro_batch ")
    assert "lora" not in advices(plan, policy, model, 100 * GIB, mixed=True)[0]
    assert all("--policy.lora.rank" in flags for flags in advices(plan, policy, model, 24 * GIB, mixed=True))
    assert advices(plan, policy, model, 1 * GIB, mixed=True) == []


@pytest.mark.parametrize(
    ("name", "large", "small"),
    [("adamw", 8, 8), ("adamw8bit", 2 + 8 / 256, 8), ("paged_adamw32bit", 8, 8), ("torch.optim.SGD", 0, 0)],
)
def test_the_state_of_optimizers_is_measured(name: str, large: float, small: float) -> None:
    assert state_bytes(name, {}, 2**20) == pytest.approx(large, abs=0.01)
    assert state_bytes(name, {}, 1024) == pytest.approx(small, abs=0.01)


def test_rollouts_within_a_token_budget() -> None:
    rows = PackedRows.within(1000, prompt=100, completion=50, per_prompt=8, most=64)
    assert rows == PackedRows(prompts=2, prompt=100, rollouts=16, completion=50)
    assert rows.tokens == 1000
    assert PackedRows.within(10, prompt=100, completion=50, per_prompt=8, most=64).rollouts == 1
    assert PackedRows.within(10**6, prompt=100, completion=50, per_prompt=8, most=4).rollouts == 4


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * GIB), ("80 GB", 80 * 10**9), ("1.5gib", 1.5 * GIB), ("1000 B", 1000)]
)
def test_sizes(text: str, size: float) -> None:
    assert memory_bytes(text) == size
    assert math.isclose(PlanConfig(memory=text).limit or 0, size)


@pytest.mark.parametrize(
    ("size", "text"),
    [(1.5 * GIB, "1.5 GiB"), (1023 * 2**20, "1,023 MiB"), (123_456 * GIB, "121 TiB"), (512, "0.5 KiB"), (0, "0 KiB")],
)
def test_sizes_as_text(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("text", ["", "24 gigs", "-1GiB", "0", "24", "GiB", "1e3GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"--plan.memory: expected a size such as 24GiB"):
        PlanConfig(memory=text)
