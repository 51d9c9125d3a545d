"""What the documentation shows runs as it stands there."""

from __future__ import annotations

import re
import runpy
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest

from rloop_lightning.algorithms import ALGORITHMS, CONSOLIDATIONS
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.main import main
from rloop_lightning.cli.presets import preset_names
from rloop_lightning.engines import ENGINES
from rloop_lightning.run.metrics_csv import read_metrics

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]


@cache
def known_options() -> set[str]:
    """Those of the command line, with each algorithm, consolidation and engine of ours."""
    parts = {"algo": ALGORITHMS, "consolidate": CONSOLIDATIONS, "engine": ENGINES}
    chosen = [[f"--{group}", name] for group, names in parts.items() for name in names]
    parsers = [RLoopCLI(argv).parser for argv in chosen]
    return {option for parser in parsers for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_a_page_names_exist(page: Path) -> None:
    groups = "algo|consolidate|engine|loop|filter|eval|policy|capture|hub"
    named = set(re.findall(rf"(?<![\w-])--(?:{groups})\.\w+", page.read_text()))
    assert named - known_options() <= {"--algo.scale"}  # of CONTRIBUTING's own algorithm


def test_the_task_of_docs_extending_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
        if block.startswith("# my_task.py")
    ]
    (tmp_path / "my_task.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    task = ["--config", "countdown", "--data", "my_task.Sums", "--data.largest=8", "--reward", "my_task.LastWord"]
    sizes = ["--loop.rounds=1", "--loop.explore_steps=1", "--loop.problems_per_step=4", "--loop.rollouts_per_problem=2"]
    evaluation = ["--eval.samples=2", "--eval.k=[1]", "--eval.every_n_steps=0", "--eval.sets=[test]"]
    rest = ["--algo.dynamic_sampling=false", "--eval.sets_inside=[test]", "--consolidate=none", "--debug"]
    assert main([*task, *sizes, *evaluation, *rest, "--out", str(tmp_path / "run")]) == 0
    assert {"eval/test/pass@1"} <= read_metrics(tmp_path / "run" / "metrics.csv")[0].keys()


def test_the_algorithm_of_contributing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (indented,) = re.findall(r"```python\n( *# centred.py\n.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (tmp_path / "centred.py").write_text(textwrap.dedent(indented))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "centred", raising=False)
    mine = ["--algo", "centred.CentredReinforce", "--algo.scale", "2", "--consolidate", "none"]
    sizes = ["--loop.rounds=1", "--loop.explore_steps=1", "--loop.problems_per_step=4", "--loop.rollouts_per_problem=4"]
    evaluation = ["--eval.samples=2", "--eval.k=[1]", "--eval.every_n_steps=0", "--eval.sets=[test]"]
    rest = ["--eval.sets_inside=[test]", "--eval.max_problems=4", "--debug", "--out", str(tmp_path / "run")]
    assert main([*mine, *sizes, *evaluation, *rest]) == 0
    row = next(row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["phase"] == "explore")
    assert row["policy/surprise_nats"] > 0
    assert "CentredReinforce" in (tmp_path / "run" / "config.yaml").read_text()


def test_the_reward_and_the_settings_of_docs_rewards_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "rewards.md").read_text()
    for kind, name in (("python", "my_reward.py"), ("yaml", "weighted.yaml")):
        (source,) = re.findall(rf"```{kind}\n(# {re.escape(name)}\n.*?)```", text, re.DOTALL)
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    sizes = ["--loop.rounds=1", "--loop.explore_steps=1", "--loop.problems_per_step=4", "--loop.rollouts_per_problem=2"]
    evaluation = ["--eval.samples=2", "--eval.k=[1]", "--eval.every_n_steps=0", "--eval.sets=[test]"]
    rest = ["--algo.dynamic_sampling=false", "--eval.sets_inside=[test]", "--eval.max_problems=4", "--consolidate=none"]
    configs = ["--config", "countdown", "--config", str(tmp_path / "weighted.yaml")]
    assert main([*configs, *sizes, *evaluation, *rest, "--debug", "--out", str(tmp_path / "run")]) == 0
    row = next(row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "rollout/reward_mean" in row)
    parts = {name: row[f"reward/{name}_mean"] for name in ("correct", "format", "length", "steps")}
    weighted = parts["correct"] + 0.1 * parts["format"] + 0.05 * parts["length"] + 0.02 * parts["steps"]
    assert row["rollout/reward_mean"] == pytest.approx(weighted)
    assert row["rollout/success_rate"] == parts["correct"]
    assert parts["format"] > 0
    assert parts["steps"] > 0


def test_every_preset_is_mentioned_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in preset_names() if name not in readme] == []


def test_the_picture_shows_the_rooms_of_the_package() -> None:
    script = ROOT / "docs" / "images" / "architecture.py"
    drawn = runpy.run_path(str(script))
    folders = {path.parent.name for path in (ROOT / "rloop_lightning").glob("*/__init__.py")}
    assert {room for row in drawn["ROOMS"] for room, _ in row} == folders
    assert script.with_suffix(".svg").read_text() == drawn["picture"]()
