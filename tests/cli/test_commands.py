"""The console commands as the installed scripts call them, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

# What a script in the environment's bin folder does, and what the collector did meanwhile.
SCRIPT = """
import gc, sys
runs = []
def note(phase, info):
    lightning = sys.modules.get("lightning")
    runs.append(lightning is not None and lightning.__spec__._initializing)
gc.callbacks.append(note)
from rloop_lightning.cli.commands import {function}
sys.argv = [{command!r}, *{arguments!r}]
try:
    code = {function}()
except SystemExit as ended:
    code = ended.code
gc.collect()
print("\\n", code, "lightning" in sys.modules, any(runs), bool(runs), gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


@pytest.mark.parametrize(
    ("command", "function", "arguments", "said", "code"),
    [
        ("rloop-fit", "rloop_fit", ["--help_all"], "--algo.clip_eps_high", 0),
        (
            "rloop-fit",
            "rloop_fit",
            ["--loop.rounds", "0"],
            "error: --loop.rounds: expected an integer > 0",
            2,
        ),
        ("rloop-eval", "rloop_eval", ["countdown"], "rloop-eval: error: --data: give the problem sets", 2),
        ("rloop-compare", "rloop_compare", ["--seeds", "0"], "rloop-compare: error: give a study file", 2),
        ("rloop-data", "rloop_data", ["check"], "rloop-data: error: give a problem set", 2),
        ("rloop-reward", "rloop_reward", ["check"], "rloop-reward: error: give a problem set", 2),
    ],
)
def test_a_command_answers_and_its_imports_are_not_searched_for_garbage(
    command: str, function: str, arguments: list[str], said: str, code: int
) -> None:
    script = SCRIPT.format(command=command, function=function, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == [str(code), "True", "False", "True", "True", "True"]


@pytest.mark.parametrize(
    ("command", "function", "arguments", "said", "code"),
    [
        ("rloop-fit", "rloop_fit", ["--help"], "--loop.explore_steps", 0),
        ("rloop-fit", "rloop_fit", ["--algo", "minirl", "-h"], "--algo.length_normalised", 0),
        ("rloop-fit", "rloop_fit", ["--algo", "minrl", "-h"], "error: --algo: unknown name 'minrl'", 2),
        ("rloop-fit", "rloop_fit", ["--version"], f"rloop-fit {version('rloop-lightning')} (Python 3.", 0),
        ("rloop-eval", "rloop_eval", [], "usage: rloop-eval POLICY...", 0),
        ("rloop-eval", "rloop_eval", ["--help"], "--eval.samples", 0),
        ("rloop-eval", "rloop_eval", ["compare", "-h"], "usage: rloop-eval compare A B", 0),
        ("rloop-eval", "rloop_eval", ["--version"], f"rloop-eval {version('rloop-lightning')} (Python 3.", 0),
        ("rloop-compare", "rloop_compare", ["--help"], "--launcher", 0),
        ("rloop-compare", "rloop_compare", [], "usage: rloop-compare", 0),
        ("rloop-compare", "rloop_compare", ["--version"], f"rloop-compare {version('rloop-lightning')} (Python", 0),
        ("rloop-data", "rloop_data", ["--help"], "--data.answer_field", 0),
        ("rloop-data", "rloop_data", [], "usage: rloop-data check", 0),
        ("rloop-data", "rloop_data", ["--version"], f"torch {version('torch')}", 0),
    ],
)
def test_help_and_version_import_no_torch(
    command: str, function: str, arguments: list[str], said: str, code: int
) -> None:
    script = (
        f"import sys; from rloop_lightning.cli.commands import {function}; sys.argv = {[command, *arguments]!r}\n"
        f"print({function}(), [name for name in ('torch', 'lightning', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"{code} []"


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        ("rloop_fit", ["--reward", "my_task.Coloured", "--help"], "--reward.colour"),
        ("rloop_data", ["check", "my_task.Nothing"], "is not a subclass of rloop_lightning.data.base.ProblemSource"),
    ],
)
def test_a_class_path_is_found_where_the_command_is_run(
    function: str, arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "my_task.py").write_text(
        "from rloop_lightning.rewards.base import Reward\n\n"
        "class Nothing: ...\n\n"
        "class Coloured(Reward):\n"
        "    def __init__(self, *, colour: str = 'red') -> None: ...\n"
        "    def rewards(self, problems, texts): ...\n"
    )
    (tmp_path / "torch.py").write_text("raise SystemExit('a file beside the user is no package that is installed')\n")
    script = (
        f"import sys; from rloop_lightning.cli.commands import {function}; sys.argv = ['command', *{arguments!r}]; "
    )
    script += f"sys.exit({function}())"
    # As of an installed script, whose path does not begin with the current folder (-P).
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert said in done.stdout + done.stderr


def test_the_scripts_of_the_package_are_these() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    found = {
        name: getattr(import_module(target.split(":")[0]), target.split(":")[1]) for name, target in scripts.items()
    }
    assert {name: function.__name__ for name, function in found.items()} == {
        "rloop-fit": "rloop_fit",
        "rloop-eval": "rloop_eval",
        "rloop-compare": "rloop_compare",
        "rloop-report": "rloop_report",
        "rloop-data": "rloop_data",
        "rloop-reward": "rloop_reward",
        "rloop-serve": "main",  # runs in the environment of vLLM, without this package's dependencies
    }
