"""Runs of 1, 2 and 3 processes give the same rows, and the same policies up to rounding; resumes, too."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_policy
from killing import Signal
from moe import make_moe_policy
from rank_jobs import run_ranks
from safetensors.torch import load_file
from same_rows import assert_same_rows
from tiny_run import TinyRun

pytestmark = pytest.mark.timeout(600)  # a busy machine

_SMALL: Mapping[str, Mapping[str, Any]] = {
    "data": {"name": "countdown", "train_size": 20, "validation_size": 4, "test_size": 4, "ood_size": 4},
    "engine": {"max_new_tokens": 8},
    "reward": {"name": "reward_functions.even"},
    "loop": {"explore_steps": 2, "problems_per_step": 3, "rollouts_per_problem": 4, "checkpoint_every_n_steps": 1},
    "eval": {"samples": 2, "k": [1, 2], "max_problems": 2, "sets": ["test"]},
}
_EVERYTHING: Mapping[str, Mapping[str, Any]] = {
    "algo": {
        "name": "dapo",
        "lr": 1e-4,
        "warmup_steps": 2,
        "updates_per_step": 2,
        "dynamic_sampling": True,
        "kl_beta": 0.05,
        "entropy_coef": 0.01,
    },
    "filter": {"enabled": True, "max_success_rate": 0.6},
    "capture": {"every_n_steps": 1, "extra_rollouts": 2, "extra_problems": 2},
    "eval": {"every_n_steps": 1, "sets_inside": ["test"]},
}
"""A KL reference, old logprobs, dynamic sampling, captures, and evaluations inside the exploration."""


_WITHOUT_EXPERTS: Mapping[str, Mapping[str, Any]] = {
    "average": {"name": "average", "alpha": 0.5},
    "distil": {"name": "distil", "lr": 1e-4, "steps": 2, "rollouts_per_update": 4},
}


class Runs:
    """Runs of several kinds and numbers of ranks, each made once.

    Args:
        folder: where they are made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = cache(self._made)

    def settings(self, kind: str) -> TinyRun:
        first, *words = kind.split()
        folder = self.folder / kind.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        changes = {group: dict(values) for group, values in _SMALL.items()}
        policy: dict[str, Any] = {}
        if not (model := folder / "model").exists():
            new = make_moe_policy if first == "moe" else make_policy
            new(dtype=torch.float32).save(model)
        policy["model"] = str(model)
        if first == "moe":
            policy["routing_replay"] = "r2"
        if "lora" in words or first == "lora":
            policy["lora"] = {"rank": 4}
        if "everything" in words:
            for group, values in _EVERYTHING.items():
                changes[group] = {**changes.get(group, {}), **values}
        for way in _WITHOUT_EXPERTS.keys() & words:
            changes["consolidate"] = _WITHOUT_EXPERTS[way]
            changes["loop"] |= {"rounds": 2, "explore_steps": 1}
        changes["policy"] = policy
        return TinyRun.written(folder, **changes)

    def arguments(self, kind: str, strategy: str, out: Path) -> list[str]:
        words = kind.split()
        given = ["--trainer.precision", "bf16-mixed"] if "bf16" in words else []
        given += ["--trainer.strategy", strategy] if strategy != "auto" else []
        return ["--config", str(self.settings(kind).config), "--out", str(out), *given]

    def _made(self, kind: str, size: int, strategy: str = "auto", nodes: int = 1) -> Path:
        out = self.folder / f"{kind}-{size}-{strategy}-{nodes}".replace(" ", "-")
        job = run_ranks(size, self.arguments(kind, strategy, out), out.with_suffix(".logs"), nodes=nodes)
        assert not any(job.codes), job.said
        return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    ("kind", "size", "strategy"),
    [
        ("dense everything", 2, "auto"),
        ("dense everything", 3, "auto"),
        ("dense everything", 2, "fsdp2"),
        ("dense everything", 3, "fsdp2"),
        ("moe", 2, "auto"),
        ("moe", 2, "fsdp2"),
        ("moe", 3, "fsdp2"),
        ("lora", 2, "auto"),
        ("lora", 2, "fsdp2"),
        ("lora", 3, "fsdp2"),
    ],
)
def test_the_number_of_ranks_changes_no_row(kind: str, size: int, strategy: str, runs: Runs) -> None:
    assert_same_rows(runs.out(kind, size, strategy), runs.out(kind, 1))


@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
@pytest.mark.parametrize("way", list(_WITHOUT_EXPERTS))
def test_consolidations_without_an_expert_set_give_the_same_policy(way: str, strategy: str, runs: Runs) -> None:
    """Over two rounds, since the second begins with what all ranks have of the first."""
    kind, within = f"dense {way}", 1e-4 if way == "distil" else 1e-6
    several, one = runs.out(kind, 2, strategy), runs.out(kind, 1)
    explored = load_file(one / "round-0" / "explore" / "policy" / "model.safetensors")
    for policy in ("round-0/policy", "round-1/explore/policy", "final"):
        ours, theirs = (load_file(out / policy / "model.safetensors") for out in (several, one))
        assert any(not torch.equal(weight, explored[name]) for name, weight in theirs.items())
        for name, weight in theirs.items():
            torch.testing.assert_close(ours[name], weight, rtol=0, atol=within)


def test_two_machines_of_two_ranks_give_the_same_rows_too(runs: Runs) -> None:
    """Shards within a machine, replicas over machines."""
    assert_same_rows(runs.out("lora", 4, "hsdp", 2), runs.out("lora", 1))


@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
def test_mixed_precision_gives_the_same_rows(strategy: str, runs: Runs) -> None:
    """Sums of bfloat16 products differ in the third digit, and an Adam step is of size lr where a gradient is small."""
    ours, theirs = runs.out("dense bf16", 2, strategy), runs.out("dense bf16", 1)
    assert_same_rows(ours, theirs, weights_within=8e-4, values_within=0.05, in_float32=False)


@pytest.mark.parametrize(
    ("sizes", "strategies"), [((3, 2), ("fsdp2", "auto")), ((1, 3), ("auto", "fsdp2"))], ids=["fewer", "more"]
)
def test_a_run_goes_on_with_another_number_of_ranks(
    sizes: tuple[int, int], strategies: tuple[str, str], runs: Runs, tmp_path: Path
) -> None:
    kind, out = "dense everything", tmp_path / "run"
    stopped = Signal("lightning:Trainer.save_checkpoint", 1)
    job = run_ranks(sizes[0], runs.arguments(kind, strategies[0], out), tmp_path / "first", faults={0: stopped})
    assert job.codes == [143] * sizes[0], job.said
    assert len(list(out.rglob("*.ckpt"))) == 1
    job = run_ranks(sizes[1], ["--resume", str(out), "--trainer.strategy", strategies[1]], tmp_path / "second")
    assert not any(job.codes), job.said
    assert_same_rows(out, runs.out(kind, 1))
