"""Runs that train on unsolved problems alone: what they leave out by their pools, a kill, and what they say."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli.test_fit import usage_error
from killing import Kill
from same_run import assert_same_run
from tiny_run import TinyRun, resume

from rloop_lightning.run.metrics_csv import read_metrics

BELOW = 0.3


@pytest.fixture(scope="module")
def tiny_unsolved(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Two rounds, two steps ahead, by whatever the run has sampled so far."""
    return TinyRun.written(
        tmp_path_factory.mktemp("config"),
        data={"train_size": 10},
        engine={"max_new_tokens": 48},
        algo={
            "name": "maxrl",
            "lr": 1e-4,
            "unsolved_only": True,
            "unsolved_below": BELOW,
            "unsolved_over": "run",
            "max_generation_batches": 3,
        },
        loop={"rounds": 2, "explore_steps": 3, "staleness": 1, "on_too_few_groups": "train"},
        eval={"sets": []},
    )


@pytest.fixture(scope="module")
def uninterrupted(tiny_unsolved: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_unsolved.finished(tmp_path_factory.mktemp("uninterrupted") / "run")


def test_groups_of_problems_that_the_run_solved_are_left_out(uninterrupted: Path) -> None:
    seen: dict[str, list[bool]] = defaultdict(list)
    problems = {f"{row['problem_id']}" for row in _rollouts(uninterrupted / "round-0")}
    rows = [row for row in read_metrics(uninterrupted / "metrics.csv") if row["phase"] == "explore"]
    assert len(rows) == 6
    for row in rows:
        shard = uninterrupted / f"round-{row['round']}" / "pool" / f"step-{row['step']:06d}.parquet"
        groups: dict[str, list[bool]] = defaultdict(list)
        for rollout in pq.read_table(shard).to_pylist():
            groups[rollout["problem_id"]].append(rollout["success"])
        # A problem may come twice; its second group counts after its first. A pool does not tell them apart, so only
        # steps without such a problem are compared.
        if all(len(successes) == 4 for successes in groups.values()):
            out = sum(not _unsolved(seen[name]) for name in groups)
            assert row["rollout/solved_groups"] == out, row
        for name, successes in groups.items():
            seen[name] += successes
        assert row["rollout/unsolved_problems"] == sum(_unsolved(seen[name]) for name in problems)
    assert sum(row["rollout/solved_groups"] for row in rows) > 2
    second = next(row for row in rows if row["round"] == 1)
    assert second["rollout/solved_groups"] > 0  # by the first round's pool


def test_a_killed_run_leaves_out_the_same_groups(tiny_unsolved: TinyRun, uninterrupted: Path, tmp_path: Path) -> None:
    """In the third step of the second round, of which the step ahead is in a checkpoint."""
    out, log = tmp_path / "run", tmp_path / "log"
    kill = Kill("rloop_lightning.algorithms.policy_module:PolicyModule.update", _updates_before(uninterrupted) + 3)
    assert tiny_unsolved.fit_apart(out, log, kill) == -9, log.read_text()
    assert [path.name for path in (out / "round-1" / "explore" / "checkpoints").iterdir()] != []
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, uninterrupted)


def test_an_exploration_that_runs_out_of_problems_ends_and_the_results_say_why(
    tiny_unsolved: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    more = ["--loop.rounds=1", "--loop.on_too_few_groups=end_phase", "--algo.unsolved_below=0", "--loop.staleness=0"]
    sizes = ["--loop.explore_steps=40", "--algo.unsolved_over=round"]
    assert tiny_unsolved.fit(out, *more, *sizes) == 0
    assert "trains on problems without a success so far in the round alone (--algo.unsolved_only)" in caplog.text
    said = (out / "results.md").read_text()
    assert "of problems that were solved before (--algo.unsolved_only)" in said
    assert "of 10 problems are unsolved; the step needs 4 (--loop.on_too_few_groups end_phase)" in said
    assert "too little is left to train on: of 12 groups, " in said


def test_settings_without_the_rule_are_refused_by_flag() -> None:
    message = usage_error("--algo", "cispo", "--algo.unsolved_below", "0.2", "--algo.unsolved_over", "run")
    assert message.splitlines() == [
        "--algo.unsolved_below needs --algo.unsolved_only true, got 0.2",
        "--algo.unsolved_over needs --algo.unsolved_only true, got run",
    ]
    assert "expected a number >= 0 and < 1, got 1" in usage_error("--algo.unsolved_below", "1")
    assert "expected round or run, got 'step'" in usage_error("--algo.unsolved_over", "step")


def _unsolved(successes: list[bool]) -> bool:
    return not any(successes) or sum(successes) / len(successes) < BELOW


def _rollouts(folder: Path) -> list[dict]:
    return [row for shard in sorted((folder / "pool").glob("*.parquet")) for row in pq.read_table(shard).to_pylist()]


def _updates_before(run: Path) -> int:
    """Updates before the second round's exploration: one per training step."""
    rows = read_metrics(run / "metrics.csv")
    return sum(row["round"] == 0 and row["phase"] in ("explore", "consolidate") for row in rows)
