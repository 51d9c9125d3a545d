"""What the plan of a run says about memory once the policy is loaded, in figures by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import make_architecture_model
from builders import make_model, make_policy, make_tokenizer
from tiny_run import TinyRun

from rloop_lightning.algorithms.average import Average
from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.algorithms.distil import Distil
from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.engines.rows import most_columns
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.run.memory_forecast import memory_lines
from rloop_lightning.run.memory_setup import phases
from rloop_lightning.run.plan_text import size_text


def lines(policy: Policy, device: str, **settings: Any) -> list[str]:
    parts: Any = SimpleNamespace(
        algorithm=DAPO(updates_per_step=2, **settings),
        consolidation=None,
        engine=TorchEngine(max_new_tokens=20, max_rows=8),
        prompt_lengths=[("a", 5), ("b", 12)],
        problems_per_step=4,
        loop=SimpleNamespace(rollouts_per_problem=4, problems_per_step=4),
        largest_request=16,
    )
    return [text for _, text in memory_lines(parts, policy, torch.device(device))]


def test_what_each_consolidation_holds() -> None:
    """A fine-tuning holds a reference with a KL term alone, a distillation its teacher, an average nothing."""

    def found(consolidation: Any) -> list[tuple[str, bool, int]]:
        parts: Any = SimpleNamespace(
            algorithm=DAPO(updates_per_step=2),
            consolidation=consolidation,
            loop=SimpleNamespace(rollouts_per_problem=4),
        )
        return [(phase.name, phase.reference, phase.per_update) for phase in phases(parts, 4)]

    exploration = ("exploration", False, 8)
    assert found(None) == found(Average()) == [exploration]
    assert found(Distil(rollouts_per_update=6)) == [exploration, ("consolidation", True, 6)]
    assert found(RFT()) == [exploration, ("consolidation", False, 64)]
    assert found(RFT(kl_beta=0.1)) == [exploration, ("consolidation", True, 64)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_weights_gradients_and_moments(device: str) -> None:
    policy = make_policy(dtype=torch.float32)
    sizes = [weight.numel() for weight in policy.parameters()]
    held = lines(policy, device)[1]
    assert held == f"{size_text(16 * sum(sizes))} of it for weights, gradients, optimizer"
    held = lines(policy, device, kl_beta=0.1)[1]
    assert held == f"{size_text(20 * sum(sizes))} of it for weights, gradients, optimizer, reference policy"


def test_moments_in_8_bits() -> None:
    policy = make_policy(dtype=torch.float32, hidden_size=64, intermediate_size=96)
    sizes = [weight.numel() for weight in policy.parameters()]
    small = sum(size for size in sizes if size < 4096)
    moments = 8 * small + (2 + 8 / 256) * (sum(sizes) - small)
    assert 0 < small < sum(sizes)
    held = lines(policy, "cpu", optimizer="adamw8bit")[1]
    assert held.split(" of it")[0] == size_text(8 * sum(sizes) + moments)


def test_the_cache_is_that_of_all_rows_at_their_longest() -> None:
    policy = Policy(make_model("Qwen3", dtype=torch.float32), make_tokenizer(), 4096)
    policy.mixed_precision = torch.bfloat16
    update, _, generation, cache = lines(policy, "cuda")
    assert "in updates of 4,096 tokens at once (--policy.max_tokens_per_micro_batch)" in update
    assert "in generation of 8 rollouts at once (--engine.max_rows)" in generation
    # keys and values of 2 layers of 2 heads of 8, in bfloat16
    size = 8 * most_columns(12 + 20) * 2 * 2 * 16 * 2
    assert cache == f"{size_text(size)} of it for their KV cache, at most 32 tokens each"


def test_no_figure_is_made_up_for_layers_that_are_not_counted() -> None:
    policy = Policy(make_architecture_model("Qwen3-Next"), make_tokenizer())
    (held,) = lines(policy, "cuda")
    assert held.endswith(" for weights, gradients, optimizer; activations, KV cache on top")


def test_the_rows_are_those_of_the_largest_evaluation(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.fit(tmp_path / "run", "--dry_run", "--eval.samples=16", "--eval.max_problems=3") == 0
    assert "in generation of 48 rollouts at once (--engine.max_rows)" in capsys.readouterr().out
    assert tiny.fit(tmp_path / "run", "--dry_run", "--eval.sets=[]") == 0
    assert "in generation of 16 rollouts at once (--engine.max_rows)" in capsys.readouterr().out
