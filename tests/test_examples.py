"""The examples run as they are: the notebook in a kernel, the reward as a script, GSM8K's settings on a tiny model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from builders import make_model
from nbclient import NotebookClient
from problem_files import byte_tokenizer
from shared_data import shared

from rloop_lightning.cli.main import main
from rloop_lightning.run.metrics_csv import read_metrics

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def test_the_readme_lists_every_example() -> None:
    listed = set(re.findall(r"\]\(([\w.-]+)[/)]", (EXAMPLES / "README.md").read_text()))
    there = {path.name for path in EXAMPLES.iterdir() if path.name not in ("README.md", "__pycache__")}
    assert listed == there


def test_the_notebook_runs_and_is_kept_without_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(EXAMPLES / "first_run.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    _, table, plots, pool, completions = (cell.outputs for cell in code)
    assert "round 1 consolidated" in table[0].data["text/markdown"]
    assert len(plots) >= 2
    assert all("image/png" in output.data for output in plots)
    assert len(re.findall(r"'finish_reason': '(?:stop|length)'", pool[0].text)) == 8
    lines = completions[0].text.splitlines()
    assert len(lines) == 8
    assert all(re.match(r"(right|wrong) [\d ]+=\d+: ", line) for line in lines)


def test_the_reward_runs_as_a_script_and_its_run_can_be_resumed(tmp_path: Path) -> None:
    source = (EXAMPLES / "custom_reward.py").read_text()
    (tmp_path / "custom_reward.py").write_text(source.replace('"explore_steps": 10', '"explore_steps": 1'))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "custom_reward.py"]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "| policy" in done.stdout
    (out,) = (tmp_path / "runs").iterdir()
    rewards = [row["rollout/reward_mean"] for row in read_metrics(out / "metrics.csv") if row["phase"] == "explore"]
    assert len(rewards) == 1
    run = [sys.executable, "-m", "rloop_lightning", "--resume", str(out.relative_to(tmp_path))]
    assert subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, timeout=240).returncode == 0


def test_the_reward_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from custom_reward import right_and_brief

    from rloop_lightning import Countdown

    (problem,) = Countdown(test_size=1).evaluation()["test"][:1]
    wrong, long = "nothing", "x" * 45
    assert right_and_brief([problem, problem], [wrong, long]) == pytest.approx([0.0, -0.25])
    assert right_and_brief([problem], ["x" * 500]) == pytest.approx([-0.4])


def test_the_settings_of_gsm8k_run_on_a_tiny_model(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    model = make_model(vocab_size=264, eos_token_id=tokenizer.eos_token_id, max_position_embeddings=2048)
    model.float().save_pretrained(tmp_path / "model")
    config = EXAMPLES / "gsm8k" / "gsm8k.yaml"
    files = {"train": shared("gsm8k_train.jsonl"), "test": shared("gsm8k_test.jsonl")}
    for name, file in files.items():
        rows = file.read_text(encoding="utf-8").splitlines()[:40]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    data = ["--data", str(tmp_path / "train.jsonl"), f"--data.eval={{test: {tmp_path / 'test.jsonl'}}}"]
    sizes = ["--loop.rounds=1", "--loop.explore_steps=1", "--loop.problems_per_step=4", "--loop.rollouts_per_problem=2"]
    smaller = ["--data.validation_size=4", "--eval.samples=2", "--eval.k=[1,2]", "--eval.max_problems=2"]
    random = [
        "--engine.max_new_tokens=16",
        "--algo.dynamic_sampling=false",
        "--algo.updates_per_step=2",
        "--filter.enabled=false",
    ]
    out = tmp_path / "run"
    options = [*data, *sizes, *smaller, *random, "--policy.model", str(tmp_path / "model"), "--out", str(out)]
    assert main(["--config", str(config), *options]) == 0
    settings = yaml.safe_load((out / "config.yaml").read_text())
    theirs = yaml.safe_load(config.read_text())
    assert settings["data"]["preset"] == theirs["data"]["preset"]
    assert settings["algo"]["lr"] == float(theirs["algo"]["lr"])
    assert settings["policy"]["gradient_checkpointing"]
    assert {"eval/test/pass@1", "eval/validation/pass@1"} <= read_metrics(out / "metrics.csv")[0].keys()
    assert json.loads((out / "state.json").read_text())["phase"] == "done"


def test_the_filter_of_gsm8k_reaches_problems() -> None:
    """At one visit a problem, one success lies within the filter; a round visits each training problem."""
    settings = yaml.safe_load((EXAMPLES / "gsm8k" / "gsm8k.yaml").read_text())
    loop = settings["loop"]
    assert 1 / loop["rollouts_per_problem"] < settings["filter"]["max_success_rate"]
    assert loop["explore_steps"] * loop["problems_per_step"] >= 7473 - settings["data"]["validation_size"]
