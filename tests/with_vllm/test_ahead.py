"""Whole runs that generate ahead of the updates, on vLLM in a process of its own: pools, metrics, kill and resume."""

from __future__ import annotations

import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from killing import Kill, Signal
from same_run import assert_same_run
from tiny_run import TinyRun, resume

from rloop_lightning.run.metrics_csv import read_metrics

UPDATE = "torch.optim:AdamW.step"


@pytest.fixture
def run(python: str, tmp_path: Path) -> TinyRun:
    return TinyRun.written(
        tmp_path,
        engine={"name": "vllm", "max_new_tokens": 24, "cpu_cache_gib": 0.25, "python": python},
        consolidate={"name": "none"},
        loop={"staleness": 1, "explore_steps": 3},
    )


def explored(out: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(out / "metrics.csv") if row["phase"] == "explore"]


def test_a_killed_run_ahead_of_its_updates_resumes_to_the_same_bits(run: TinyRun, tmp_path: Path) -> None:
    """The kill comes in the third update. The checkpoint before it has the third step's rollouts."""
    expected = run.finished(tmp_path / "uninterrupted")
    out, log = tmp_path / "run", tmp_path / "log"
    assert run.fit_apart(out, log, Kill(UPDATE, 3)) == -signal.SIGKILL, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, expected)
    rows = explored(expected)
    assert [row["rollout/lag_steps"] for row in rows] == [0, 1, 1]
    assert all(0 <= row["policy/probe_gap_nats"] < 1e-4 for row in rows)
    for step, version in enumerate([0, 0, 1]):
        shard = pq.read_table(expected / "round-0" / "pool" / f"step-{step + 1:06d}.parquet")
        assert set(shard["policy_version"].to_pylist()) == {version}


def test_a_run_with_updates_in_flight(run: TinyRun, tmp_path: Path) -> None:
    """Three steps are begun at once, so that an update finds requests that run. A checkpoint would wait for them."""
    changes = ["--loop.in_flight_updates", "true", "--loop.staleness", "2", "--loop.rollouts_per_problem", "16"]
    more = ["--loop.checkpoint_every_n_steps", "0", "--engine.max_rows", "8"]
    out = run.finished(tmp_path / "run", *changes, *more)
    rows = explored(out)
    lags = [row["rollout/lag_steps"] for row in rows]
    assert lags[0] == 0
    assert any(lag % 1 for lag in lags)  # tokens of more than one policy
    assert all(lag <= 2 for lag in lags)
    for row in rows:
        shard = pq.read_table(out / "round-0" / "pool" / f"step-{int(row['step']):06d}.parquet")
        oldest = shard["policy_version"].to_pylist()
        assert row["step"] - 1 - max(oldest) <= row["rollout/lag_steps"] <= row["step"] - 1 - min(oldest)


def test_a_second_signal_ends_a_run_that_generates(run: TinyRun, tmp_path: Path) -> None:
    log = tmp_path / "log"
    strike = Signal(UPDATE, 1, number=signal.SIGTERM, times=2)
    arguments = ("--loop.rollouts_per_problem", "100", "--engine.max_rows", "8")
    assert run.fit_apart(tmp_path / "run", log, strike, arguments=arguments) == 143, log.read_text()
