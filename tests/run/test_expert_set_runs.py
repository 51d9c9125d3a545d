"""The hard-problem filter in whole runs: refused if nothing can pass it, and loud if nothing does."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from killing import Kill
from safetensors.torch import load_file
from tiny_run import TinyRun

from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.main import main
from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.run.metrics_csv import read_metrics

# 16 groups of 4 for 4 problems: 16 rollouts of each, at most 1/16 each.
FEW_PROBLEMS = ("--data.train_size=4", "--filter.enabled=true")


def same(ours: Path, theirs: Path) -> bool:
    one, other = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    return all(torch.equal(one[name], other[name]) for name in other)


def test_a_filter_that_nothing_can_pass_is_refused(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """40 problems, 16 groups of 4 rollouts: one success is a rate of 25 %."""
    assert tiny.fit(tmp_path / "run", "--filter.enabled=true") == 2
    said = capsys.readouterr().err
    assert "--filter.max_success_rate 0.1: no problem can be hard, so every expert set would be empty" in said
    assert "A problem gets at most 4 rollouts" in said
    assert "the lowest success rate above 0 is 25.0%" in said
    for remedy in ("--loop.rollouts_per_problem 11", "at most 5 problems", "--filter.max_success_rate 0.26"):
        assert remedy in said
    assert "--filter.rate_over run with --loop.rounds 3" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "remedy",
    [
        ["--loop.rollouts_per_problem=11"],
        ["--data.train_size=5"],
        ["--filter.max_success_rate=0.26"],
        ["--filter.rate_over=run", "--loop.rounds=3"],
        ["--capture.every_n_steps=4", "--capture.extra_rollouts=7"],
        ["--filter.enabled=false"],
        ["--consolidate=none"],
    ],
    ids=" ".join,
)
def test_each_remedy_is_let_through(tiny: TinyRun, tmp_path: Path, remedy: list[str]) -> None:
    config = ["--config", str(tiny.config), "--out", str(tmp_path / "run"), "--filter.enabled=true", *remedy]
    RLoopCLI(config).prepare()


def test_with_an_empty_expert_set_the_explored_policy_is_handed_over(
    tiny: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    assert tiny.fit(out, *FEW_PROBLEMS, "--reward=reward_functions.always", "--loop.rounds=2", "--debug") == 0
    said = (out / "results.md").read_text()
    assert "round 1: the expert set is empty: no problem that the round solved has a success rate below" in said
    assert "the next round begins where this one began" in said
    assert "round 2: the expert set is empty" in said
    assert "the explored policy is handed over" in said
    assert "the explored policy is handed over" in caplog.text
    assert "**round 2 explored** (handed over)" in said
    assert same(out / "round-0" / "policy", embedded_model_path())
    assert same(out / "final", out / "round-1" / "explore" / "policy")


def test_an_empty_expert_set_may_stop_the_run_and_a_resume_may_go_on(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stop = ["--reward=reward_functions.never", "--loop.on_empty_expert_set=stop", "--loop.rounds=2"]
    assert tiny.fit(out, *FEW_PROBLEMS, *stop, "--debug") == 0
    assert json.loads((out / "state.json").read_text())["stopped"]
    assert (
        "the expert set is empty: none of the 64 rollouts is a success; the run stops here"
        in (out / "results.md").read_text()
    )
    assert not (out / "round-1").exists()
    assert same(out / "final", out / "round-0" / "explore" / "policy")
    assert main(["--resume", str(out)]) == 0
    assert not (out / "round-1").exists()
    assert main(["--resume", str(out), "--loop.on_empty_expert_set=continue"]) == 0
    assert (out / "round-1" / "policy").exists()


def test_an_empty_expert_set_may_end_the_run_with_an_error_that_a_resume_mends(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    easy = ["--reward=reward_functions.always", "--loop.on_empty_expert_set=error"]
    assert tiny.fit(out, *FEW_PROBLEMS, *easy) == 1
    said = capsys.readouterr().err
    assert "round 1: the expert set is empty" in said
    assert "Resume with a larger --filter.max_success_rate" in said
    assert not (out / "final").exists()
    assert main(["--resume", str(out)]) == 1
    again = shutil.copytree(out, tmp_path / "again")
    assert main(["--resume", str(again), "--loop.on_empty_expert_set=continue", "--trust"]) == 0  # a copy is unknown
    assert main(["--resume", str(out), "--filter.enabled=false"]) == 0
    assert pq.read_table(out / "round-0" / "expert.parquet").num_rows
    assert not same(out / "final", embedded_model_path())


def test_metrics_tell_how_many_problems_are_within_reach_while_the_run_explores(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.warns(UserWarning, match="half of the exploration's 4 rollout steps are done and no problem is hard"):
        assert tiny.fit(out, *FEW_PROBLEMS, "--reward=reward_functions.always", "--debug") == 0
    explored = [row for row in read_metrics(out / "metrics.csv") if row["phase"] == "explore"]
    assert [row["pool/problems_within_reach"] for row in explored] == [0, 0, 4, 4]  # 11 rollouts are the third group
    assert [row["pool/problems_solved"] for row in explored] == [4, 4, 4, 4]
    assert [row["pool/hard_problems"] for row in explored] == [0, 0, 0, 0]
    results = (out / "results.md").read_text()
    assert "| problems within reach | hard problems | expert set |" in results
    assert "|                     4 |             0 |          0 |" in results


CONTROL = (*FEW_PROBLEMS, "--filter.max_success_rate=0.6", "--filter.finished_only=false")


def test_a_random_control_is_logged_and_a_resume_may_turn_to_it(
    tiny: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A kill in the consolidation gives the same bits, and a resume with the control those of a run that began so."""
    caplog.set_level(logging.INFO, logger="rloop_lightning")
    hard, control, killed = tmp_path / "hard", tmp_path / "control", tmp_path / "killed"
    assert tiny.fit(hard, *CONTROL, "--debug") == 0
    assert tiny.fit(control, *CONTROL, "--filter.control=random", "--debug") == 0
    found = {name: json.loads((run / "state.json").read_text()) for name, run in (("h", hard), ("c", control))}
    hards, controls = (found[name]["results"]["round 1 consolidated"] for name in "hc")
    differ = {"expert/problems", "expert/rollouts_of_hard_problems"}
    counts = {key for key in hards if key.startswith(("expert/", "pool/"))}
    assert all(hards[key] == controls[key] for key in counts - differ)
    assert hards["expert/rollouts"] > 0
    rollouts, problems, of_hard = (
        f"{controls[f'expert/{key}']:.0f}" for key in ("rollouts", "problems", "rollouts_of_hard_problems")
    )
    assert f"random control of {rollouts} rollouts of {problems} problems" in caplog.text
    assert f"(--filter.control random), {of_hard} of them of the" in caplog.text
    sets = [pq.read_table(run / "round-0" / "expert.parquet") for run in (hard, control)]
    assert sets[0].num_rows == sets[1].num_rows
    assert sets[0]["problem_id"].to_pylist() != sets[1]["problem_id"].to_pylist()
    (row,) = [row for row in read_metrics(control / "metrics.csv") if "expert/problems" in row]
    assert row["expert/problems"] == controls["expert/problems"]

    log = tmp_path / "log"
    kill = Kill("os:replace", 1, "round-0/expert.parquet")
    assert tiny.fit_apart(killed, log, kill, arguments=CONTROL) == -9
    assert main(["--resume", str(killed), "--filter.control=random", "--debug"]) == 0
    assert same(killed / "final", control / "final")
    assert pq.read_table(killed / "round-0" / "expert.parquet").equals(sets[1])


def test_the_control_is_refused_where_no_problem_can_be_hard(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.fit(tmp_path / "run", "--filter.enabled=true", "--filter.control=random") == 2
    assert "no problem can be hard, so every expert set would be empty" in capsys.readouterr().err
    no_experts = ["--filter.enabled=true", "--consolidate=average"]
    assert tiny.fit(tmp_path / "run", "--filter.control=random", *no_experts) == 2
    assert "--filter.control random: there is no expert set without --consolidate rft" in capsys.readouterr().err
    assert tiny.fit(tmp_path / "run", "--filter.control=random") == 2
    assert "--filter.control random takes as many rollouts as the hard-problem filter would" in capsys.readouterr().err
