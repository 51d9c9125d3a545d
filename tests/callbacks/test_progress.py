"""Progress in a log file, through the command line: what each line says, in the middle of a step too."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from tiny_run import TinyRun

from rloop_lightning.callbacks import bar, progress
from rloop_lightning.run.metrics_csv import read_metrics


@pytest.fixture
def tiny_sampling(tmp_path: Path) -> TinyRun:
    return TinyRun.written(
        tmp_path,
        engine={"max_new_tokens": 48},
        algo={"dynamic_sampling": True, "updates_per_step": 2},
        loop={"problems_per_step": 8, "rollouts_per_problem": 8, "explore_steps": 4},
        eval={"every_n_steps": 2, "max_problems": 4, "sets": ["test", "ood"], "sets_inside": ["ood"]},
        capture={"every_n_steps": 2, "extra_rollouts": 2, "extra_problems": 3},
    )


def test_a_log_file_gets_one_line_of_a_phase_that_takes_less_than_a_minute(
    tiny_sampling: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        tiny_sampling.fit(tmp_path / "run", "--consolidate=none", "--loop.rounds=1", "--loop.show_completions=0") == 0
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if re.match("round 1/1 .*%", line)]
    assert [line.split("  ")[0].split(" 100%")[0] for line in lines] == [
        "round 1/1 evaluate base",
        "round 1/1 explore",
        "round 1/1 evaluate explored",
    ]
    assert all(" 100%" in line for line in lines)


def test_every_line_of_a_long_step_is_true(
    tiny_sampling: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that gains a minute each time somebody looks: every event is shown."""
    clock = itertools.count(0, 60.0)
    monkeypatch.setattr(bar, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(progress, "perf_counter", lambda: float(next(clock)))
    out = tmp_path / "run"
    assert tiny_sampling.fit(out, "--consolidate=none", "--loop.rounds=1", "--loop.show_completions=0") == 0
    text = capsys.readouterr().err
    explored = [line for line in text.splitlines() if line.startswith("round 1/1 explore ")]
    rows = [row for row in read_metrics(out / "metrics.csv") if row["phase"] == "explore"]
    for done, row in enumerate(rows):
        lines = [line for line in explored if f" {done}/4 " in line]
        sampling = [line for line in lines if "sampling" in line]
        drawn = int(row["rollout/generated_rollouts"]) // 8
        kept = [int(re.search(r"sampling (\d+)/8 groups of (\d+) drawn", line)[1]) for line in sampling]
        seen = [int(re.search(r"groups of (\d+) drawn", line)[1]) for line in sampling]
        tokens = [int(found[1].replace(",", "")) for line in sampling if (found := re.search(r"([\d,]+) tokens", line))]
        assert kept == sorted(kept)
        assert max(seen) <= drawn
        assert tokens == sorted(tokens)
        assert tokens[-1] == row["rollout/generated_tokens"]
        assert any("updating (2)" in line for line in lines)
    assert any("sampling 0/8 groups of 0 drawn" in line for line in explored)
    inside = [line for line in explored if "evaluation and extra capture" in line]
    assert inside
    assert {re.search(r" (\d)/4 ", line)[1] for line in inside} == {"1"}  # in the second step
    assert [line for line in explored if " 3/4 " in line and "extra capture" in line]  # after the last one too
    last = rows[-1]["rollout/reward_mean"]
    assert re.search(rf" 4/4 \[.*<00:00, .* s/step, reward {last:.3f}, pass@1 \d\.\d+, [\d,]+ tok/s\]", explored[-1])


def test_an_evaluation_counts_problems(
    tiny_sampling: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 60.0)
    monkeypatch.setattr(bar, "perf_counter", lambda: float(next(clock)))
    out = tmp_path / "run"
    assert tiny_sampling.fit(out, "--consolidate=none", "--loop.rounds=1", "--loop.explore_steps=1") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("round 1/1 evaluate base")]
    counts = [int(re.search(r" (\d+)/8 ", line)[1]) for line in lines]
    assert counts == sorted(counts)
    assert counts[-1] == 8
    assert {1, 2, 3} & set(counts)  # within the first set of four
    (base, _) = [row for row in read_metrics(out / "metrics.csv") if row["phase"] == "evaluate"]
    assert f"ood pass@1 {base['eval/ood/pass@1']:.3f}" in lines[-1]
    assert base["time/evaluate_s"] > 0


def test_no_bar_is_shown_where_none_is_wanted(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = ["--trainer.enable_progress_bar=false", "--consolidate=none", "--loop.explore_steps=1"]
    assert tiny.fit(tmp_path / "run", *hidden) == 0
    assert "round 1/1 explore 100%" not in capsys.readouterr().err


def test_an_exploration_that_its_tokens_limit_tells_the_steps_that_it_will_have(
    tiny: TinyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count(0, 60.0)
    monkeypatch.setattr(bar, "perf_counter", lambda: float(next(clock)))
    limit = ["--loop.explore_tokens=2200", "--loop.explore_steps=4000", "--filter.enabled=true"]
    with pytest.warns(UserWarning, match="no problem is hard yet") as warned:
        assert tiny.fit(tmp_path / "run", *limit, "--filter.max_success_rate=0.01", "--consolidate=rft") == 0
    (said,) = [str(one.message) for one in warned if "no problem is hard yet" in str(one.message)]
    text = capsys.readouterr().err
    steps = len([row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["phase"] == "explore"])
    assert 4 < steps < 40
    shown = [re.search(r"^round 1/1 explore .*? (\d+)/(\d+) ", line) for line in text.splitlines()]
    totals = {int(found[1]): int(found[2]) for found in shown if found}  # the last that each step's lines tell
    assert totals[0] < 40  # once the first step is sampled
    assert totals[steps] == steps
    assert any(f"half of the exploration's {total} rollout steps" in said for total in totals.values())
    left = re.search(r"by the first rollout step: (\d+) rollout steps", caplog.text)
    assert left
    assert int(left[1]) == totals[0] - 1
