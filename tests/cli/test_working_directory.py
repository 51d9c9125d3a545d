"""Modules in the working directory are found by their class path, and by nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REWARD = """
import my_helper

def mine(problems, completions):
    return [my_helper.VALUE] * len(completions)
"""
TRAP = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()\n"
# Optional dependencies that libraries try to import, and one that is installed.
TRAPS = ("scipy", "gmpy2", "pandas", "matplotlib_inline", "IPython", "yaml", "colorama", "typeshed_client")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_reward.py").write_text(REWARD)
    (tmp_path / "my_helper.py").write_text("VALUE = 1.0\n")
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text(TRAP)
    (tmp_path / "train.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    return tmp_path


def run(folder: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / command
    return subprocess.run([str(program), *arguments], cwd=folder, capture_output=True, text=True, check=False)


def ran(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.ran"))


def test_a_class_path_of_the_working_directory_is_found_with_its_own_imports(folder: Path) -> None:
    done = run(folder, "rloop-fit", "--print_config", "--reward", "my_reward.mine")
    assert done.returncode == 0, done.stderr
    assert "my_reward.mine" in done.stdout
    assert ran(folder) == []


def test_nothing_else_is_imported_from_the_working_directory(folder: Path) -> None:
    assert run(folder, "rloop-data", "check", "train.jsonl").returncode == 0
    assert ran(folder) == []


def test_python_m_does_not_import_from_it_either(folder: Path) -> None:
    arguments = [sys.executable, "-m", "rloop_lightning", "--print_config"]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ran(folder) == []
