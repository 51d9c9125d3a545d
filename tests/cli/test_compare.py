"""`rloop-compare` from the command line to the files of a study."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fake_cells import complete
from tiny_run import TinyRun

from rloop_lightning.cli.compare import main
from rloop_lightning.evaluation.record_values import pass_at_k_difference
from rloop_lightning.run import cells
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.state import LoopState
from rloop_lightning.run.study import Arm, Study

COMMAND = "import sys; from rloop_lightning.cli.commands import rloop_compare; sys.exit(rloop_compare())"


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> str:
    """What the command prints, errors included."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def settings(study: Path, arm: str) -> dict:
    return yaml.safe_load((study / arm / "settings.yaml").read_text())


def test_a_study_that_was_killed_ends_as_one_that_was_not(
    tiny: TinyRun, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    arguments = ["--config", str(tiny.config), "--consolidate", "rft,none", "--seeds", "0", "--out", str(study)]
    killed = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.DEVNULL)
    checkpoints = study / "rft" / "seed-0" / "round-0" / "explore" / "checkpoints"
    while not (checkpoints.exists() and any(checkpoints.iterdir())):
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    text = said(capsys, *arguments)
    assert "rft, seed 0" in text
    cell = study / "rft" / "seed-0"
    before, after = (RunFolder(run).newest_state()[0] for run in (finished, cell))
    assert before is not None
    assert after is not None
    assert after.results == before.results
    assert (cell / "final" / "model.safetensors").read_bytes() == (
        finished / "final" / "model.safetensors"
    ).read_bytes()
    assert "stopped by SIGTERM" in (study / "rft" / "seed-0.log").read_text()  # it did not go on without its study
    told = pass_at_k_difference(
        {0: study / "none" / "seed-0" / "round-0" / "evaluations" / "explored.parquet"},
        {0: cell / "round-0" / "evaluations" / "consolidated.parquet"},
        "test",
        2,
    )
    with (study / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "none" and row["kind"] == "difference"]
    found = next(row for row in rows if row["metric"] == "test/pass@2")
    assert (float(found["mean"]), float(found["low"])) == (told.interval.estimate, told.interval.low)
    assert (study / "results.md").read_text().strip() in text
    page = (study / "comparison.html").read_text()
    assert f"the page is {study / 'comparison.html'}" in text
    assert all(f">{arm}<" in page for arm in ("rft", "none"))
    states = {run: (run / "state.json").read_bytes() for run in study.glob("*/seed-0")}
    assert (study / "results.md").read_text().strip() in said(capsys, *arguments)
    assert states == {run: (run / "state.json").read_bytes() for run in study.glob("*/seed-0")}


def test_arms_have_the_settings_that_a_run_of_theirs_would_have(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        f"config: {tiny.config}\n"
        "base: {loop: {explore_steps: 6}, filter.max_per_problem: 3}\n"
        "arms:\n"
        "  dapo: {consolidate: none}\n"
        "  minirl: {algo: {name: minirl, lr: 3.0e-4}, consolidate: rft, loop.rounds: 2, loop.explore_steps: 3}\n"
    )
    out = tmp_path / "out"
    arguments = [file, "--out", out, "--consolidate.lr", "5e-4", "--algo.length_normalised=true", "--eval.samples", "4"]
    said(capsys, *arguments, "--table_only")
    dapo, minirl = settings(out, "dapo"), settings(out, "minirl")
    assert (dapo["consolidate"], minirl["consolidate"]["lr"], minirl["consolidate"]["epochs"]) == (
        {"name": "none"},
        5e-4,
        2,
    )
    assert minirl["algo"]["length_normalised"] is True
    assert "length_normalised" not in dapo["algo"]
    assert (dapo["algo"]["lr"], minirl["algo"]["lr"]) == (1e-4, 3e-4)
    assert (dapo["loop"]["explore_steps"], minirl["loop"]["explore_steps"], minirl["loop"]["rounds"]) == (6, 3, 2)
    for arm in (dapo, minirl):
        assert (arm["filter"]["max_per_problem"], arm["eval"]["samples"], arm["data"]["train_size"]) == (3, 4, 40)
        assert not {"out", "resume", "seed_everything", "dry_run"} & arm.keys()
    stored = yaml.safe_load((out / "study.yaml").read_text())
    assert (stored["seeds"], stored["budget"], list(stored["arms"])) == ([0, 1, 2], "rollout_steps", ["dapo", "minirl"])


def test_the_studies_of_the_docs_are_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text()
    found = {}
    for name, text in re.findall(r"```yaml\n# (\w+\.yaml)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text)
        said(capsys, tmp_path / name, "--out", tmp_path / name.removesuffix(".yaml"), "--table_only")
        found[name] = list(yaml.safe_load((tmp_path / name.removesuffix(".yaml") / "study.yaml").read_text())["arms"])
    assert found == {
        "filter.yaml": ["dapo", "random", *(f"rloop max_success_rate={rate}" for rate in (0.05, 0.1, 0.2, 0.5))],
        "search.yaml": [f"lr={lr}" for lr in (0.0001, 0.0002, 0.0004)],
    }
    assert settings(tmp_path / "filter", "random")["filter"]["control"] == "random"


def test_the_default_preset_is_that_of_rloop_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "--algos", "dapo,grpo", "--out", tmp_path / "out", "--table_only")
    assert settings(tmp_path / "out", "dapo")["data"]["train_size"] == 300
    assert settings(tmp_path / "out", "grpo")["loop"]["explore_steps"] == 60


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seeds", "0"], ["give a study file, or --algos and --consolidate"]),
        (["--algos", "dapo", "--seeds", "0,0", "--jobs", "0"], ["--jobs: expected an integer > 0"]),
        (
            ["--algos", "dapo", "--seeds", "0,0", "--launcher", "srun"],
            ["--seeds: give", "--launcher: it needs {command}"],
        ),
        (["--algos", "dapo", "--launcher", "nohow {command}"], ["--launcher: no program 'nohow' is on this machine"]),
        (["--algos", "dapo", "--launcher", "sh -c '{command}"], ["--launcher: its quotes don't match"]),
        (["--algos", "dapo", "--seeds", "x"], ["--seeds: expected a list"]),
        (["--algos", "dapo", "grpo"], ["'grpo' is not an option"]),
        (
            ["--algos", "dapo", "--out", "o", "--seed_everything", "3", "--resume", "r"],
            ["give --seeds", "run the same command"],
        ),
        (
            ["--algos", "dapo,dpao", "--consolidate", "none"],
            ["arm dpao+none: --algos, --consolidate: algo: unknown name 'dpao'"],
        ),
        (
            ["--algos", "dapo,grpo", "--loop.rounds", "0", "--algo.clip_eps_hihg", "1"],
            [
                "error: --loop.rounds: expected",
                "error: --algo.clip_eps_hihg: no such option; did you mean --algo.clip_eps_high",
            ],
        ),
        (["--algos", "dapo", "--algo", "grpo"], ["--algo: the arm dapo sets it too"]),
        (["--algos", "dapo", "--hub.push", "me/model"], ["--hub.push: a study has a policy for each cell"]),
        (["--algos", "dapo", "--policy.model", "/nowhere"], ["error: --policy.model /nowhere"]),
        (["--algos", "dapo", "--budget", "time"], ["--budget: expected rollout_steps, tokens or free or null"]),
        (["nothing.yaml"], ["no study file 'nothing.yaml'"]),
    ],
)
def test_wrong_input_is_told_before_anything_is_written(
    arguments: list[str],
    told: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    text = said(capsys, *arguments, code=2)
    for message in told:
        assert message in text
    assert list(tmp_path.iterdir()) == []


def test_a_fault_in_a_study_file_names_the_file_and_the_arm(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        f"config: {tiny.config}\nbase: {{engine.temperature: -1}}\narms: {{a: {{loop.rounds: x}}, A: {{algo: dpao}}}}\n"
    )
    text = said(capsys, file, "--algos", "dapo", code=2)
    assert "--algos: " in text
    text = said(capsys, file, code=2)
    assert f"arm a: {file}: arms.a: loop.rounds: expected an integer > 0, got 'x'" in text
    assert f"arm A: {file}: arms.A: algo: unknown name 'dpao'; did you mean dapo?" in text
    assert f"error: {file}: base: engine.temperature" in text  # of all arms
    assert text.count("engine.temperature") == 1
    file.write_text(f"config: {tiny.config}\narms: {{a: {{}}, b: {{algo.lr: 1}}, c: {{algo: {{lr: 1.0}}}}}}\n")
    # A check that is gone fails here, and starts no run.
    text = said(capsys, file, "--out", tmp_path / "out", "--table_only", code=2)
    assert text.count("error: ") == 1
    assert "arms b and c: their settings are equal; leave one out" in text
    file.write_text(f"config: {tiny.config}\narms: {{a: {{}}, A: {{}}, '?': {{}}}}\n")
    text = said(capsys, file, code=2)
    assert "arms a and A: both would be in the folder a" in text
    assert "arm '?': a name needs a letter or a digit" in text


def test_arms_of_unequal_budget_are_refused_unless_they_may_be(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(f"config: {tiny.config}\narms: {{a: {{consolidate: none}}, b: {{loop.explore_steps: 12}}}}\n")
    out = tmp_path / "out"
    text = said(capsys, file, "--out", out, code=2)
    assert "--budget rollout_steps: the arms differ in the rollouts that they train on: a 64, b 192" in text
    said(capsys, file, "--out", out, "--budget", "free", "--table_only")
    said(capsys, file, "--out", out, "--budget", "tokens", "--table_only")
    text = said(capsys, file, "--out", out, "--budget", "tokens", "--algo.lr_schedule", "cosine", code=2)
    assert "arm a: its learning rate would decay over a number of steps that is not known" in text


def test_an_arm_that_has_run_keeps_its_settings(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", tiny.config, "--algos", "dapo,grpo", "--seeds", "0,1", "--out", tmp_path / "out"]
    said(capsys, *arguments, "--table_only")
    said(capsys, *arguments, "--table_only", "--eval.samples", "4")  # no cell has begun
    said(capsys, *arguments, "--table_only")
    arm = Arm("dapo", {}, settings(tmp_path / "out", "dapo"))
    cell = Study(tmp_path / "out", [arm], [0, 1]).cells[0]
    complete(cell, {"round 1 explored": {"test": {"p": 1}}}, selected="round 1 explored", seconds=120)
    text = said(capsys, *arguments, "--eval.samples", "4", "--loop.rounds", "2", code=2)
    assert "arm dapo has run there with other settings: eval.samples 4 (there: 2), loop.rounds 2 (there: 1)" in text
    assert "arm grpo" not in text
    known = settings(tmp_path / "out", "dapo")
    del known["loop"]["explore_tokens"]  # as a version wrote it that did not have it
    (tmp_path / "out" / "dapo" / "settings.yaml").write_text(yaml.safe_dump(known))
    text = said(capsys, *arguments, "--dry_run")
    assert "[1/4] dapo, seed 0: complete" in text
    assert "[3/4] dapo, seed 1: to do, about 2 min 0 s" in text
    assert "4 runs, 3 to do: about 6 min 0 s, one at a time, by 1 complete run\n" in text
    LoopState("id", phase="explore", settings={}).save(Study(tmp_path / "out", [arm], [1]).cells[0].run.state)
    assert "[3/4] dapo, seed 1: begun, round 1 explore" in said(capsys, *arguments, "--dry_run")


def test_the_time_of_a_new_study_is_that_of_a_trial(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(
        capsys, "--config", tiny.config, "--consolidate", "rft", "--seeds", "0", "--out", tmp_path / "out", "--dry_run"
    )
    assert "[1/1] rft, seed 0: to do, about " in text
    assert "by a trial of two rollout steps on this machine, without consolidations" in text
    assert not (tmp_path / "out").exists()


def test_submitted_runs_and_those_that_wait_for_their_tokens_are_no_failures(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", tiny.config, "--algos", "dapo,grpo,kl", "--seeds", "0", "--out", tmp_path / "out"]
    text = said(capsys, *arguments, "--budget", "tokens", "--launcher", "echo {command}")
    assert "1 runs were submitted; the same command with --table_only compares those that are complete" in text
    assert "2 runs wait for the tokens of submitted ones; repeat the command once those jobs are done" in text
    assert "error" not in text


def test_a_reader_that_goes_away_stops_no_study(tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = Study(tmp_path / "template", [Arm("one", {}, {})], [0]).cells[0]
    complete(template, {"round 1 explored": {"test": {"p": 1}}}, selected="round 1 explored")
    fit = tmp_path / "fit.sh"
    fit.write_text(f'while [ "$1" != --out ]; do shift; done; mkdir -p "$2" && cp -r {template.run.out}/. "$2"\n')
    monkeypatch.setattr(cells, "FIT", ("/bin/sh", str(fit)))
    out = tmp_path / "out"
    arguments = ["--config", str(tiny.config), "--algos", "dapo,grpo", "--seeds", "0", "--out", str(out)]
    arguments += ["--launcher", "sh {command}"]  # of which no trial tells the time
    for more in (["--dry_run"], []):
        for name in ("stdout", "stderr"):
            reader, writer = os.pipe()
            os.close(reader)
            monkeypatch.setattr(sys, name, os.fdopen(writer, "w"))
        assert main([*arguments, *more]) == 0
    assert all(cell.complete for cell in Study(out, [Arm("dapo", {}, {}), Arm("grpo", {}, {})], [0]).cells)
    assert (out / "comparison.html").is_file()


def test_exploring_ends_with_its_tokens(tiny: TinyRun, tmp_path: Path) -> None:
    assert tiny.fit(tmp_path / "run", "--loop.explore_tokens", "500", "--loop.explore_steps", "50") == 0
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    tokens = [float(row["rollout/generated_tokens"]) for row in rows if row["phase"] == "explore"]
    assert sum(tokens) >= 500 > sum(tokens[:-1])
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["budget"]["tokens"] == sum(tokens)
    assert state["notes"] == []


def test_a_study_begins_in_an_empty_folder(
    tiny: TinyRun, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "results.md").read_bytes()
    text = said(capsys, "--config", tiny.config, "--algos", "dapo", "--out", finished, "--table_only", code=2)
    assert f"--out {finished} already contains a run" in text
    (tmp_path / "study.yaml").write_text("arms: {a: {}}\n")
    text = said(capsys, tmp_path / "study.yaml", "--out", tmp_path, "--table_only", code=2)
    assert f"--out {tmp_path} is not empty, it contains study.yaml" in text
    assert (tmp_path / "study.yaml").read_text() == "arms: {a: {}}\n"
    assert (finished / "results.md").read_bytes() == before


def test_two_studies_do_not_run_in_one_folder(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rloop_lightning.system.lock import FolderLock

    out = tmp_path / "out"
    out.mkdir()
    with FolderLock(out / "study.lock"):
        text = said(capsys, "--config", tiny.config, "--algos", "dapo", "--out", out, code=2)
    assert "in use by" in text
