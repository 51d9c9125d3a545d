"""The examples run as they are: the notebook in a kernel, the reward as a script. cli/test_recipes.py runs GSM8K's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

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
