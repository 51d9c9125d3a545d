"""Runs whose rollouts are generated ahead of the updates: pools, metrics, importance correction, resume, refusals."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from killing import Kill, run_fit
from same_run import assert_same_run
from tiny_run import TinyRun, resume

from rloop_lightning.run.metrics_csv import read_metrics

STALE = ("--loop.staleness", "2")


def explored(run: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(run / "metrics.csv") if row["phase"] == "explore"]


def test_what_a_stale_run_records(tiny: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert tiny.fit(tmp_path / "run", *STALE) == 0
    assert "generated 2 steps ahead, between updates, which saves no time (--loop.staleness)" in caplog.text
    shards = sorted((tmp_path / "run" / "round-0" / "pool").glob("step-*.parquet"))
    columns = [pq.read_table(shard, columns=["rollout_step", "policy_version"]).to_pydict() for shard in shards]
    assert [set(zip(*column.values(), strict=True)) for column in columns] == [{(0, 0)}, {(1, 0)}, {(2, 0)}, {(3, 1)}]
    rows = explored(tmp_path / "run")
    assert [row["rollout/lag_steps"] for row in rows] == [0, 1, 2, 2]
    # The rollouts of the first step are the policy's own; later ones differ from it by what it has learnt.
    assert rows[0]["policy/engine_kl_nats"] < 1e-9
    assert "policy/lag_kl_nats" not in rows[0]
    assert all(row["policy/lag_kl_nats"] > 1e-7 and "policy/engine_kl_nats" not in row for row in rows[1:])
    assert all("policy/importance_weight" in row for row in rows)  # on by default


def test_the_correction_can_be_turned_off_and_changes_the_updates(tiny: TinyRun, tmp_path: Path) -> None:
    runs = {}
    for mode in ("auto", "none", "truncate"):
        runs[mode] = tmp_path / mode
        assert tiny.fit(runs[mode], *STALE, "--consolidate", "none", "--algo.importance_correction", mode) == 0
    assert all("policy/importance_weight" not in row for row in explored(runs["none"]))
    losses = {mode: [row["train/loss"] for row in explored(run)] for mode, run in runs.items()}
    assert losses["auto"] == losses["truncate"] != losses["none"]


def test_minirl_corrects_by_its_own_weight(tiny: TinyRun, tmp_path: Path) -> None:
    assert tiny.fit(tmp_path / "run", *STALE, "--consolidate", "none", "--algo", "minirl") == 0
    assert all("policy/importance_weight" in row for row in explored(tmp_path / "run"))


def test_a_killed_stale_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    run = TinyRun.written(tmp_path, loop={"explore_steps": 6, "checkpoint_every_n_steps": 2, **_staleness(2)})
    expected = run.finished(tmp_path / "uninterrupted")
    out, log = tmp_path / "run", tmp_path / "log"
    assert run.fit_apart(out, log, Kill("torch.optim:AdamW.step", 4)) == -9, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, expected)


def test_steps_that_were_sampled_before_a_resume_with_more_problems_are_trained_on(tmp_path: Path) -> None:
    run = TinyRun.written(tmp_path, loop={"explore_steps": 6, "checkpoint_every_n_steps": 2, **_staleness(2)})
    out, log = tmp_path / "run", tmp_path / "log"
    assert run.fit_apart(out, log, Kill("torch.optim:AdamW.step", 4)) == -9, log.read_text()
    assert run_fit(["--resume", str(out), "--loop.problems_per_step", "6"], log) == 0, log.read_text()
    assert len(explored(out)) == 6
    shards = sorted((out / "round-0" / "pool").glob("step-*.parquet"))
    groups = [pq.read_metadata(shard).num_rows // 4 for shard in shards]
    assert groups == sorted(groups)
    assert set(groups) == {4, 6}


def _staleness(steps: int) -> dict[str, int]:
    return {"staleness": steps, "rounds": 1, "problems_per_step": 4, "rollouts_per_problem": 4}


def test_updates_in_flight_need_an_engine_of_its_own(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.fit(tmp_path / "run", *STALE, "--loop.in_flight_updates", "true") == 2
    assert "--loop.in_flight_updates true: TorchEngine does not generate beside the updates" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_engine_that_sleeps_during_updates_can_not_generate_during_them(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sleeps = ["--engine", "vllm", "--engine.sleep", "true"]
    assert tiny.fit(tmp_path / "run", *STALE, *sleeps) == 2
    said = capsys.readouterr().err
    assert "--engine.sleep true: with --loop.staleness, the server generates during the updates" in said
    assert "leave out one of them" in said
