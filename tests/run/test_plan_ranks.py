"""The plan of one rank of several: its shares by hand, what it gathers, and what ranks send each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from run.test_memory_plan import model_7b

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.lora import LoraSettings
from rloop_lightning.model.model_shape import ModelShape
from rloop_lightning.model.policy_weights import PolicyWeights
from rloop_lightning.model.update_memory import Products
from rloop_lightning.run.communication import Work, received
from rloop_lightning.run.memory_plan import MemoryPlan, Moments, Phase, Setup
from rloop_lightning.run.plan_config import PlanConfig
from rloop_lightning.run.plan_ranks import PlannedRanks, RankWeights, pushed_bytes

BF16 = PolicyConfig(dtype="bfloat16")
EMBEDDING = 152_064 * 3584
NUMBERS = 7_615_616_512
LAYER = (NUMBERS - 2 * EMBEDDING - 3584) // 28


def rank_weights(ranks: PlannedRanks, policy: PolicyConfig = BF16, model: Any = None) -> RankWeights:
    model = model_7b() if model is None else model
    return RankWeights.of(PolicyWeights.planned(model, policy), model, policy, ranks)


def rank_plan(ranks: PlannedRanks, *, generation: torch.dtype | None = None, reference: bool = False) -> MemoryPlan:
    """Of one of the ranks that share 64 rollouts of an update, of 1,024 tokens after prompts of 512."""
    own, shape = rank_weights(ranks), ModelShape.of(model_7b())
    assert shape is not None
    phase = Phase("exploration", Moments(8, 8), reference, 64 // ranks.number, 8)
    products = Products("cuda", torch.bfloat16, torch.bfloat16, checkpointing=True)
    setup = Setup(products, (phase,), 4096, 8, prompt=512, completion=1024, generation=generation)
    return MemoryPlan(shape, own.weights, setup, ranks, own.gathered, own.whole)


def test_eight_shards_of_a_7b_model() -> None:
    bar = rank_plan(PlannedRanks(1, 8, "fsdp2"), reference=True).training()
    held = {name: bar.parts[name] / NUMBERS for name in ("weights", "optimizer", "gradients", "reference policy")}
    assert held == pytest.approx({"weights": 2 / 8, "optimizer": 8 / 8, "gradients": 4 / 8, "reference policy": 2 / 8})
    # Embeddings, head and last norm; a layer and the next one; the gradient of one, less its largest tensor's, and its
    # copy in float32.
    assert bar.parts["gathered layers"] == 2 * (2 * EMBEDDING + 3584) + (3 * 2 + 4) * LAYER - 2 * 3584 * 18_944


def test_ddp_holds_everything_on_each_rank() -> None:
    one, eight = rank_plan(PlannedRanks()).training(), rank_plan(PlannedRanks(1, 8)).training()
    names = ("weights", "optimizer", "gradients", "gathered layers")
    assert [one.parts[name] for name in names] == [eight.parts[name] for name in names]
    assert one.parts["gathered layers"] == 0


def test_hsdp_divides_over_the_devices_of_a_node() -> None:
    assert rank_weights(PlannedRanks(4, 8, "hsdp")) == rank_weights(PlannedRanks(1, 8, "fsdp2"))
    assert rank_weights(PlannedRanks(4, 8, "fsdp2")).weights.bytes == pytest.approx(NUMBERS * 2 / 32, rel=1e-3)
    assert (PlannedRanks(4, 8, "hsdp").shards, PlannedRanks(4, 8, "hsdp").copies) == (8, 4)


def test_a_rank_holds_at_least_one_row_of_each_tensor() -> None:
    """As FSDP2 divides: 16 experts on 32 ranks are one expert or none."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, moe_intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, head_dim=16, num_experts=16, num_experts_per_tok=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    own = rank_weights(PlannedRanks(4, 8, "fsdp2"), model=model)
    experts = [weight.numel() // 16 for name, weight in model.named_parameters() if ".experts." in name]
    assert len(experts) == 4
    sizes = list(own.weights.trained)
    for size in experts:
        sizes.remove(size)
    assert sum(sizes) < 0.1 * sum(own.weights.trained)


def test_frozen_weights_are_divided_like_the_adapter() -> None:
    policy = PolicyConfig(dtype="bfloat16", lora=LoraSettings(rank=32))
    one, eight = rank_weights(PlannedRanks(), policy), rank_weights(PlannedRanks(1, 8, "fsdp2"), policy)
    assert eight.weights.frozen == pytest.approx(one.weights.frozen / 8, rel=1e-4)
    assert sum(eight.weights.trained) == pytest.approx(sum(one.weights.trained) / 8, rel=1e-4)
    assert eight.gathered == pytest.approx(2 * (2 * EMBEDDING + 3584) + 2 * 2 * LAYER)  # frozen layers have no gradient


def test_an_engine_without_a_model_of_its_own_has_a_whole_copy_all_the_time() -> None:
    sharded, whole = (rank_plan(PlannedRanks(1, 8, name), generation=torch.bfloat16) for name in ("fsdp2", "ddp"))  # type: ignore[arg-type]  # a strategy
    for bar in (sharded.generation(), sharded.training()):
        assert bar is not None
        assert bar.parts["whole copy"] == 2 * NUMBERS
    assert whole.training().parts["whole copy"] == 0
    assert rank_plan(PlannedRanks(1, 8, "fsdp2")).training().parts["whole copy"] == 0


def algorithm(**settings: Any) -> DAPO:
    return DAPO(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"updates_per_step": 1}, Work(1, 3, 0)),
        ({"updates_per_step": 4}, Work(4, 12, 9)),  # the first update needs no old logprobs
        ({"updates_per_step": 4, "passes": 2}, Work(8, 24, 12)),
        ({"updates_per_step": 4, "kl_beta": 0.1}, Work(4, 12, 9 + 12)),
        ({"updates_per_step": 4, "kl_beta": 0.1, "kl_in": "reward"}, Work(4, 12, 12 + 12)),
    ],
)
def test_the_micro_batches_of_a_rollout_step(settings: dict[str, Any], expected: Work) -> None:
    """8 rollouts of a rank: 3 fit into 4,096 tokens with their prompt."""
    assert Work.of(rank_plan(PlannedRanks(1, 8, "fsdp2")), algorithm(**settings)) == expected


def test_what_ranks_receive_by_hand() -> None:
    work = Work(updates=2, trained=6, scored=3)
    found = received(rank_plan(PlannedRanks(1, 8, "fsdp2")), rank_weights(PlannedRanks(1, 8, "fsdp2")), work)
    assert found["weights, all-gather"] == pytest.approx(7 / 8 * 2 * NUMBERS * (2 * 6 + 3))
    assert found["gradients, reduce-scatter"] == pytest.approx(7 / 8 * 6 * 4 * NUMBERS)
    assert found["gradients of copies, all-reduce"] == 0
    assert "weights for generation, all-gather" not in found
    copies = received(rank_plan(PlannedRanks(4, 8, "hsdp")), rank_weights(PlannedRanks(4, 8, "hsdp")), work)
    assert copies["weights, all-gather"] == found["weights, all-gather"]
    assert copies["gradients of copies, all-reduce"] == pytest.approx(2 * 3 / 4 * 6 * 4 * NUMBERS / 8)
    whole = received(rank_plan(PlannedRanks(1, 8)), rank_weights(PlannedRanks(1, 8)), work)
    assert whole == pytest.approx({"gradients, all-reduce": 2 * 7 / 8 * 2 * 4 * NUMBERS})
    own = received(
        rank_plan(PlannedRanks(1, 8, "fsdp2"), generation=torch.bfloat16),
        rank_weights(PlannedRanks(1, 8, "fsdp2")),
        work,
    )
    assert own["weights for generation, all-gather"] == pytest.approx(7 / 8 * 2 * NUMBERS)


def test_engines_get_the_whole_model_in_its_dtype() -> None:
    assert pushed_bytes(model_7b(), BF16) == 2 * NUMBERS
    quantised = PolicyConfig(dtype="bfloat16", quantization="nf4", lora=LoraSettings(rank=32))
    assert pushed_bytes(model_7b(), quantised) == 2 * NUMBERS


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({}, PlannedRanks()),
        ({"devices": 8, "num_nodes": 4, "strategy": "fsdp2"}, PlannedRanks(4, 8, "fsdp2")),
        ({"devices": "8", "strategy": "ddp"}, PlannedRanks(1, 8)),
        ({"devices": [0, 3], "strategy": "auto"}, PlannedRanks(1, 2)),
        ({"devices": "auto"}, PlannedRanks()),
    ],
)
def test_the_ranks_of_a_trainer(trainer: dict[str, Any], expected: PlannedRanks) -> None:
    assert PlannedRanks.of(trainer) == expected
    assert PlanConfig(nodes=9, devices_per_node=9).ranks(trainer) == expected  # a run itself takes no plan's ranks


def test_a_plan_s_own_ranks_come_first() -> None:
    trainer = {"devices": 8, "num_nodes": 4, "strategy": "fsdp2"}
    assert PlanConfig(only=True).ranks(trainer) == PlannedRanks(4, 8, "fsdp2")
    assert PlanConfig(only=True, nodes=2, strategy="hsdp").ranks(trainer) == PlannedRanks(2, 8, "hsdp")
    assert PlanConfig(only=True, devices_per_node=3, strategy="ddp").ranks(trainer) == PlannedRanks(4, 3)
