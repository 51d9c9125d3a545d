"""Whole runs with routing replay through `rloop-fit`, on a tiny mixture of experts: from arguments to metrics.csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from moe import make_moe_policy
from tiny_run import TinyRun

from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.base import Reward
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.types import Problem


class Digits(Reward):
    """Rewards digits, which a random policy writes some of."""

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [sum(character.isdigit() for character in text) / (1 + len(text)) for text in texts]


class Unreporting(TorchEngine):
    """An engine that does not say which experts it used."""

    reports_routed_experts = False


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "moe"
    make_moe_policy(routing_replay="none", dtype=torch.float32, max_position_embeddings=256).save(folder)
    return folder


def fit(folder: Path, model: Path, *arguments: str) -> int:
    tiny = TinyRun.written(
        folder,
        reward={"name": "run.test_run_routing.Digits"},
        engine={"max_new_tokens": 12},
        algo={"lr": 3e-2, "warmup_steps": 0, "updates_per_step": 2},
        loop={"explore_steps": 2},
        eval={"k": [1]},
        trainer={"accelerator": "cpu"},
    )
    return tiny.fit(folder / "run", "--policy.model", str(model), *arguments)


def routing_metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [row for row in read_metrics(folder / "run" / "metrics.csv") if row["phase"] == "explore"]
    return [{name: value for name, value in row.items() if name.startswith("routing/")} for row in rows]


def test_r2_replays_and_says_how_far_the_updates_moved_the_routing(model: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, model, "--policy.routing_replay", "r2", "--debug") == 0
    first, second = routing_metrics(tmp_path)
    for row in (first, second):
        assert row.keys() == {"routing/old_current_mismatch"}
        assert 0.01 < row["routing/old_current_mismatch"] < 1


def test_r3_replays_and_says_how_far_the_engine_is_too(model: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, model, "--policy.routing_replay", "r3", "--debug") == 0
    first, second = routing_metrics(tmp_path)
    for row in (first, second):
        assert row["routing/engine_old_mismatch"] < 0.01  # both compute in float32 on one device
        assert 0.01 < row["routing/old_current_mismatch"] < 1
        # In the first of the two updates the policy still is the old one, and there is nothing to compare it with.
        half = row["routing/old_current_mismatch"] / 2
        assert row["routing/engine_current_mismatch"] == pytest.approx(half, abs=0.01)
    policy = Policy.load(PolicyConfig(str(tmp_path / "run" / "final"), routing_replay="r3"))
    assert policy.routing is not None


def test_without_routing_replay_there_are_no_such_metrics(model: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, model, "--debug") == 0
    assert routing_metrics(tmp_path) == [{}, {}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--algo", "replay", "--algo.replay_per_problem", "2"],
            "--policy.routing_replay r3: the stored rollouts of Replay have no record of their experts",
        ),
        (
            ["--engine", "run.test_run_routing.Unreporting"],
            "--policy.routing_replay r3: Unreporting does not report its experts; take --engine torch, or r2",
        ),
    ],
)
def test_r3_is_refused_where_rollouts_have_no_record(
    arguments: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, model, "--policy.routing_replay", "r3", *arguments) == 2
    assert f"rloop-fit: error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dense_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path, Path("countdown"), "--policy.routing_replay", "r2") == 2
    assert "--policy.model countdown: no routers are known for model type 'qwen2'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
