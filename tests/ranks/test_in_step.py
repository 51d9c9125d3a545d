"""Whatever ends a step or a phase, and whatever is skipped: the ranks stay in step, and do what one process does."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from killing import Signal
from rank_jobs import Job, run_ranks
from same_rows import same_table
from tiny_run import TinyRun

from rloop_lightning.run.metrics_csv import read_metrics

pytestmark = pytest.mark.timeout(600)  # a busy machine

_SHORT = {
    "reward": {"name": "reward_functions.boxed"},
    "algo": {"updates_per_step": 2},
    "loop": {"explore_steps": 3, "problems_per_step": 3, "rollouts_per_problem": 4},
    "eval": {"samples": 1, "k": [1], "max_problems": 1},
}


def made(tmp_path: Path, size: int, *options: str, code: int = 0) -> tuple[Path, Job]:
    """A run of some ranks with options, and its job."""
    tiny, out = TinyRun.written(tmp_path, **_SHORT), tmp_path / f"run-{size}"
    job = run_ranks(size, ["--config", str(tiny.config), "--out", str(out), *options], out.with_suffix(".logs"))
    assert job.codes == [code] * size, job.said
    assert "Traceback" not in job.said
    return out, job


def same_tables(out: Path, expected: Path, pattern: str) -> None:
    tables = sorted(path.relative_to(expected) for path in expected.glob(pattern))
    assert sorted(path.relative_to(out) for path in out.glob(pattern)) == tables
    assert tables
    for file in tables:
        same_table(pq.read_table(out / file), pq.read_table(expected / file), file)


def steps(out: Path) -> list[tuple[object, ...]]:
    rows = read_metrics(out / "metrics.csv")
    return [(row["round"], row["phase"], row["step"], row.get("grad/skipped_updates")) for row in rows]


@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
def test_a_skipped_update_ends_the_phase_of_all(strategy: str, tmp_path: Path) -> None:
    options = ("--gradient.stop_above", "1e-9")
    out, _ = made(tmp_path, 2, *options, "--trainer.strategy", strategy)
    expected, _ = made(tmp_path, 1, *options)
    assert steps(out) == steps(expected)
    same_tables(out, expected, "**/faults/*.parquet")


def test_an_update_that_is_not_finite_is_skipped_by_all(tmp_path: Path) -> None:
    options = ("--algo", "faulty.NaNLoss", "--algo.at", "0")
    options += ("--gradient.stop_on_nonfinite", "false")
    out, _ = made(tmp_path, 2, *options, "--trainer.strategy", "fsdp2")
    expected, _ = made(tmp_path, 1, *options)
    assert steps(out) == steps(expected)
    assert len(list(out.rglob("faults/*.parquet"))) == 1


def test_a_phase_without_a_group_to_train_on_and_an_empty_expert_set(tmp_path: Path) -> None:
    options = ("--reward", "reward_functions.never", "--algo.dynamic_sampling", "true")
    options += ("--algo.max_generation_batches", "1", "--filter.enabled", "true", "--filter.max_success_rate", "0.9")
    out, job = made(tmp_path, 3, *options, "--trainer.strategy", "fsdp2")
    assert "expert set is empty" in job.logs[0]
    assert "ended after 0 of 3 rollout steps" in job.logs[0]
    expected, _ = made(tmp_path, 1, *options)
    same_tables(out, expected, "**/*.parquet")


def test_a_callback_of_rank_0_ends_the_phase_of_all(tmp_path: Path) -> None:
    """In the middle of a training step; and rollouts are a step older than the policy."""
    options = ("--trainer.callbacks+=faulty.EndsOnRank0", "--loop.staleness", "1")
    out, _ = made(tmp_path, 2, *options)
    expected, _ = made(tmp_path, 1, *options)
    assert steps(out) == steps(expected)
    same_tables(out, expected, "**/pool/*.parquet")


def test_a_callback_of_another_rank_ends_nothing(tmp_path: Path) -> None:
    out, _ = made(tmp_path, 2, "--trainer.callbacks+=faulty.EndsOnRank1", "--consolidate", "none")
    assert [phase for _, phase, _, _ in steps(out)].count("explore") == 3


def test_weights_that_are_not_finite_are_told_by_rank_0(tmp_path: Path) -> None:
    _, job = made(tmp_path, 2, "--trainer.callbacks+=faulty.InfiniteWeight", "--trainer.strategy", "fsdp2", code=1)
    assert "NaN or infinite" in "\n".join(job.errors)
    assert "rank 1 (process" not in job.said


@pytest.mark.parametrize(
    ("moment", "call"),
    [
        ("rloop_lightning.rollouts.sampler:GroupSampler.generate_share", 1),  # of the evaluation of the base policy
        ("rloop_lightning.run.fine_tuning:build_expert_set", 1),
        ("rloop_lightning.run.loop:save_final", 1),
    ],
)
def test_a_signal_in_any_phase_ends_all(moment: str, call: int, tmp_path: Path) -> None:
    tiny, out = TinyRun.written(tmp_path, **_SHORT), tmp_path / "run"
    arguments = ["--config", str(tiny.config), "--out", str(out)]
    job = run_ranks(2, arguments, tmp_path / "first", faults={0: Signal(moment, call)})
    assert job.codes == [143, 143], job.said
    assert "Traceback" not in job.said
    assert f"resume with: rloop-fit --resume {out}" in job.logs[0]
