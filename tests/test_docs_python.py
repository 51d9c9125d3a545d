"""docs/python.md: every block of code runs as it stands there, and gives what the text says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rloop_lightning.cli.main import main
from rloop_lightning.run.metrics_csv import read_metrics

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs" / "python.md").read_text(), re.DOTALL)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, with the page's modules in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in BLOCKS:
        if named := re.match(r"# (\w+)\.py\n", block):
            (tmp_path / f"{named[1]}.py").write_text(block)
            monkeypatch.delitem(sys.modules, named[1], raising=False)


def run_block(mark: str) -> dict[str, Any]:
    """The names that the block which holds a text leaves behind."""
    (block,) = [block for block in BLOCKS if mark in block and not block.startswith("# ")]
    names: dict[str, Any] = {}
    exec(compile(block, "docs/python.md", "exec"), names)
    return names


def settings(run: str) -> dict[str, Any]:
    return yaml.safe_load((Path(run) / "config.yaml").read_text())


def metrics(run: str) -> list[dict[str, Any]]:
    return read_metrics(Path(run) / "metrics.csv")


def test_every_block_is_run_by_a_test() -> None:
    marks = ("runs/small", "runs/sums", "runs/centred", "engine.generate", "runs/parts")
    assert len([block for block in BLOCKS if not block.startswith("# ")]) == len(marks)


def test_the_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_block("runs/small")["result"]
    assert list(result.results) == ["base", "round 1 explored", "round 1 consolidated"]
    assert result.results["round 1 consolidated"]["expert/rollouts"] > 0
    assert result.table in capsys.readouterr().out
    assert settings("runs/small")["policy"]["model"] == "countdown"
    assert settings("runs/small")["data"]["train_size"] == 300  # the preset's


def test_own_problems_and_a_reward_function_and_a_resume() -> None:
    result = run_block("runs/sums")["result"]
    assert settings("runs/sums")["reward"]["function"] == "my_reward.right"
    assert list(result.results) == ["base", "round 1 explored"]
    assert len(Path("runs/sums/data/train.jsonl").read_text().splitlines()) == 6
    rewards = [row["rollout/reward_mean"] for row in metrics("runs/sums") if row["phase"] == "explore"]
    assert len(rewards) == 2
    assert min(rewards) > 0
    assert main(["--resume", "runs/sums"]) == 0


def test_an_algorithm_of_ones_own() -> None:
    run_block("runs/centred")
    chosen = settings("runs/centred")["algo"]
    assert (chosen["name"], chosen["scale"]) == ("my_algorithm.Centred", 2.0)
    assert len([row for row in metrics("runs/centred") if row["phase"] == "explore"]) == 2


def test_policy_and_engine_by_hand() -> None:
    names = run_block("engine.generate")
    assert len(names["rollouts"]) == 8
    assert names["scores"].logprobs.shape == names["scores"].entropy.shape == names["batch"].loss_mask.shape
    assert names["scores"].logprobs.requires_grad
    assert 0 <= float(names["gap"]) < 1e-4


def test_the_loop_from_its_parts_and_again() -> None:
    state = run_block("runs/parts")["state"]
    assert state.selected == "round 1 consolidated"
    assert not Path("runs/parts/config.yaml").exists()
    again = run_block("runs/parts")["state"]
    assert (again.run_id, again.budget) == (state.run_id, state.budget)
