"""What `rloop_lightning` itself offers: each name, lazily, with its type and its documentation."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rloop_lightning

ROOT = Path(__file__).parents[1]


def names_for_type_checkers() -> dict[str, str]:
    """Name to module, as the imports under TYPE_CHECKING say."""
    tree = ast.parse((ROOT / "rloop_lightning" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {alias.name: str(node.module) for node in block.body for alias in node.names}  # type: ignore[attr-defined]  # all are ImportFrom


def test_what_type_checkers_see_is_what_is_offered() -> None:
    assert sorted(names_for_type_checkers()) == sorted(rloop_lightning.__all__)
    assert set(rloop_lightning.__all__) <= set(dir(rloop_lightning))


@pytest.mark.parametrize("name", rloop_lightning.__all__)
def test_a_name_is_the_object_of_its_room_and_documented(name: str) -> None:
    offered = getattr(rloop_lightning, name)
    assert offered is getattr(importlib.import_module(names_for_type_checkers()[name]), name)
    assert inspect.getdoc(offered)


def test_an_unknown_name_is_an_attribute_error_and_a_room_is_a_module() -> None:
    with pytest.raises(AttributeError, match="module 'rloop_lightning' has no attribute 'DPO'"):
        _ = rloop_lightning.DPO
    with pytest.raises(ImportError, match="cannot import name 'DPO'"):
        from rloop_lightning import DPO  # noqa: F401 -- it can't be
    from rloop_lightning import errors

    assert errors.RunFault is rloop_lightning.RunFault


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import rloop_lightning; dir(rloop_lightning)\n"
        "print(sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "['rloop_lightning']"
    code = "import sys, rloop_lightning; rloop_lightning.RunFault; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


def test_a_type_checker_knows_the_names(tmp_path: Path) -> None:
    """A wrong name and a wrong argument are errors, and nothing else is."""
    (tmp_path / "user.py").write_text(
        "from pathlib import Path\n"
        "from rloop_lightning import DAPO, Problem, TrainResult, train\n"
        "from rloop_lightning import DPO\n"
        "def reward(problems: list[Problem], completions: list[str]) -> list[float]:\n"
        "    return [float(problem.answer) for problem in problems]\n"
        "result: TrainResult = train(algo=DAPO(lr=1e-4), reward=reward, data=[{'problem': '1'}], loop={'rounds': 1})\n"
        "final: Path = result.final\n"
        "train(seed_everything='zero')\n"
    )
    api = pytest.importorskip("mypy.api", reason="mypy is a tool of `make lint`")
    said, _, _ = api.run(["--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "user.py")])
    errors = [line.partition("user.py:")[2] for line in said.splitlines() if "user.py" in line]
    assert [error.partition(":")[0] for error in errors if "error" in error] == ["3", "8"]
