"""The example of a third party's algorithm, installed as its users install it: a name that the command line finds.

It goes into a folder of its own, which stands for their environment; the project's is left as it is.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_rollout
from killing import run_main

from rloop_lightning.batching import collate
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.types import TokenScores

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "rloop-lightning-rloo"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the example into."""
    folder = tmp_path_factory.mktemp("site")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    run = [sys.executable, "-m", "pip", *install, "--target", str(folder), str(EXAMPLE)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


def test_its_name_runs_where_it_is_installed(site: Path, tmp_path: Path) -> None:
    sizes = ["--loop.rounds=1", "--loop.explore_steps=3", "--loop.problems_per_step=8", "--loop.rollouts_per_problem=4"]
    evaluation = ["--eval.samples=2", "--eval.k=[1,2]", "--eval.max_problems=2", "--eval.every_n_steps=0"]
    mine = ["--algo", "rloo", "--algo.kl_beta", "0.05", "--consolidate", "none"]
    command = [sys.executable, "-m", "rloop_lightning", *mine, *sizes, *evaluation, "--out", str(tmp_path / "run")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, site]))}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["phase"] == "explore"]
    assert len(rows) == 3
    # Of the preset's two updates a rollout step the first has ratios of 1, the second has not.
    assert all(0 < abs(row["policy/ratio"] - 1) < 0.1 for row in rows)
    assert rows[0]["policy/kl_nats"] == pytest.approx(0, abs=1e-6)  # it is the reference that generated
    assert abs(rows[2]["policy/kl_nats"]) > 1e-6
    assert "name: rloo" in (tmp_path / "run" / "config.yaml").read_text()
    assert json.loads((tmp_path / "run" / "state.json").read_text())["budget"]["optimizer_steps"] == 6


def test_its_field_is_an_option_with_help(site: Path, tmp_path: Path) -> None:
    assert run_main(["--algo", "rloo", "--help_all"], tmp_path / "log", {"sys:path": [*sys.path, str(site)]}) == 0
    shown = " ".join((tmp_path / "log").read_text().split())
    assert "--algo.kl_beta" in shown
    assert "which is taken off a rollout's reward" in shown
    assert "--algo.kl_in" not in shown  # RLOO settles it


def test_its_name_is_unknown_where_it_is_not_installed(tmp_path: Path) -> None:
    assert run_main(["--algo", "rloo", "--out", str(tmp_path / "run")], tmp_path / "log") == 2
    assert "unknown name 'rloo'" in (tmp_path / "log").read_text()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's module, not installed."""
    monkeypatch.syspath_prepend(EXAMPLE)
    return importlib.import_module("rloop_lightning_rloo")


def test_advantages_by_hand(example: Any) -> None:
    # Rewards 1, 0, 0, 1: the others' means are 1/3, 2/3, 2/3, 1/3. Equal ones: 0.1 minus a mean that is not quite 0.1.
    advantages = example.leave_one_out(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.1, 0.1, 0.1, 0.1]]))
    assert torch.allclose(advantages[0], torch.tensor([2 / 3, -2 / 3, -2 / 3, 2 / 3]))
    assert advantages[1].tolist() == [0.0] * 4


def test_the_loss_by_hand(example: Any) -> None:
    # L = -sg[rho] A lp and dL/dlp = -rho A, with rho = exp(lp - lp_old):
    #  lp   rho   A    L     dL/dlp
    #  -1   1     2    2     -2
    #  -3   2     2   12     -4
    #  -1   0.5  -1   -0.5    0.5
    logprobs = torch.tensor([[-1.0, -3.0], [-1.0, 0.0]], requires_grad=True)
    log_ratio = torch.tensor([[0.0, math.log(2)], [math.log(0.5), 0.0]])
    batch = collate([make_rollout(completion=(6, 1)), make_rollout(completion=(1,))], [2.0, -1.0])
    batch = replace(batch, old_logprobs=logprobs.detach() - log_ratio)
    output = example.RLOO().loss(TokenScores(logprobs, torch.zeros(2, 2)), batch)
    output.loss[batch.loss_mask].sum().backward()
    assert output.loss[batch.loss_mask].tolist() == pytest.approx([2.0, 12.0, -0.5])
    assert logprobs.grad.flatten().tolist() == pytest.approx([-2.0, -4.0, 0.5, 0.0])
