"""Runs whose engine samples by top-k and top-p, through `rloop-fit`: what updates compute with, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from moe import make_moe_policy
from tiny_run import TinyRun

from rloop_lightning.cli.main import main
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.types import Problem, Rollout, SamplingParams

TRUNCATED = ["--engine.top_k=6", "--engine.top_p=0.7", "--engine.temperature=1.5"]
EXPLORES = ["--consolidate=none", "--loop.explore_steps=2", "--eval.sets=[]"]


class Unreporting(TorchEngine):
    """An engine that does not say which tokens it kept."""

    reports_kept_tokens = False


class Forgetful(TorchEngine):
    """An engine that says it does, and does not."""

    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        rollouts = super().generate(problems, n, sampling)
        return [replace(rollout, kept_tokens=None, kept_counts=None) for rollout in rollouts]


def explore_rows(out: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(out / "metrics.csv") if row["phase"] == "explore"]


@pytest.mark.parametrize(
    "algo",
    [
        ["--algo=minirl"],
        ["--algo=gspo", "--algo.updates_per_step=1", "--algo.kl_beta=0.1"],
        ["--algo=dapo", "--algo.importance_correction=truncate", "--algo.importance_level=sequence"],
    ],
)
def test_the_trainer_computes_under_the_engines_distribution(tiny: TinyRun, tmp_path: Path, algo: list[str]) -> None:
    """Over the whole vocabulary the gap was 0.4 nats, and the weights of rollouts averaged 0.2."""
    assert tiny.fit(tmp_path / "run", *algo, *TRUNCATED, *EXPLORES, "--debug") == 0
    rows = explore_rows(tmp_path / "run")
    assert len(rows) == 2
    for row in rows:
        assert row["policy/engine_gap_nats_max"] < 1e-4
        assert row["policy/engine_kl_nats"] < 1e-6
        assert row.get("policy/importance_weight", 1.0) == pytest.approx(1.0, abs=1e-3)
        assert row["policy/entropy_nats"] > 0.05
        assert row["grad/norm_preclip_max"] > 0


def test_routing_replay_and_kept_tokens_go_together(tmp_path: Path) -> None:
    make_moe_policy(routing_replay="none", max_position_embeddings=256).save(tmp_path / "moe")
    tiny = TinyRun.written(
        tmp_path,
        reward={"name": "run.test_run_routing.Digits"},
        engine={"max_new_tokens": 12},
        algo={"lr": 3e-2, "warmup_steps": 0},
    )
    model = ["--policy.model", str(tmp_path / "moe"), "--policy.routing_replay", "r3"]
    assert tiny.fit(tmp_path / "run", *model, *TRUNCATED, *EXPLORES, "--debug") == 0
    for row in explore_rows(tmp_path / "run"):
        assert row["policy/engine_gap_nats_max"] < 1e-3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--algo=replay", "--engine.top_p=0.9"],
            "--engine.top_k 0, --engine.top_p 0.9: the stored rollouts of Replay have no record of the",
        ),
        (
            ["--engine=run.test_run_truncated.Unreporting", "--engine.top_k=5"],
            "--engine.top_k 5, --engine.top_p 1: Unreporting does not report the tokens that it kept",
        ),
    ],
)
def test_what_can_not_be_had_is_refused_before_a_model_is_loaded(
    tiny: TinyRun,
    tmp_path: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rloop_lightning.model.source.load_model", None)
    assert tiny.fit(tmp_path / "run", *arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "set --engine.top_k 0 and --engine.top_p 1" in shown
    assert not (tmp_path / "run").exists()


def test_sampling_from_one_token_is_greedy_and_refused(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Groups of equal rollouts have no advantages: the run trained on nothing, without a word."""
    assert tiny.fit(tmp_path / "run", "--engine.top_k=1") == 2
    assert "--engine.top_k 1 makes all rollouts of a problem the same" in capsys.readouterr().err


def test_replay_of_nothing_and_engines_that_do_not_truncate_are_not_refused(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ["--algo=replay", "--algo.replay_per_problem=0", "--engine.top_p=0.9"]
    unreporting = ["--engine=run.test_run_truncated.Unreporting"]
    for number, arguments in enumerate((nothing, unreporting)):
        out = tmp_path / f"run-{number}"
        assert tiny.fit(out, *arguments, *EXPLORES, "--loop.explore_steps=1") == 0, capsys.readouterr().err


def test_an_engine_that_forgets_the_kept_tokens_ends_the_run(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forgetful = ["--engine=run.test_run_truncated.Forgetful", "--engine.top_k=5"]
    assert tiny.fit(tmp_path / "run", *forgetful, *EXPLORES) == 1
    shown = capsys.readouterr().err
    assert "--engine.top_k 5, --engine.top_p 1: the engine's rollouts come without the tokens that were kept" in shown
    assert "Traceback" not in shown


def test_a_truncated_runs_pool_is_not_replayed_elsewhere(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its logprobs are of the kept tokens, whatever the sampling of the run that would replay them."""
    first = tmp_path / "first"
    captures = ["--capture.every_n_steps=1", "--capture.extra_rollouts=2", "--capture.extra_problems=2"]
    assert tiny.fit(first, *TRUNCATED, *EXPLORES, *captures, "--debug") == 0
    shards = sorted((first / "round-0" / "pool").glob("*.parquet"))
    assert len(shards) == 4
    assert all(b"sampled_by_top_k_or_top_p" in pq.read_schema(shard).metadata for shard in shards)
    capsys.readouterr()
    replay = ["--algo=replay", "--algo.dynamic_sampling=false", f"--algo.replay_pool={first}"]
    assert tiny.fit(tmp_path / "second", *replay, *EXPLORES) == 2
    shown = capsys.readouterr().err
    for shard in shards:
        assert f"--algo.replay_pool can't be replayed: {shard}: sampled with --engine.top_k or --engine.top_p" in shown
    assert main(["--resume", str(first)]) == 0  # a complete run


def test_an_untruncated_pool_has_no_such_mark(finished: Path) -> None:
    for shard in (finished / "round-0" / "pool").glob("*.parquet"):
        assert b"sampled_by_top_k_or_top_p" not in pq.read_schema(shard).metadata
