"""Imports point one way, room to room; nothing imports through the root's symlinks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "rloop_lightning"
DOORS = ("algorithms", "callbacks", "configs")

# From the bottom up: a room imports from itself and from the rows above its own; rooms of one row do not know each
# other. `types`, `errors`, `seeds` and `batching` are single files; `__init__` names what lies in the rooms, to type
# checkers by imports that never run, and loads it when somebody asks.
ROWS = (
    {"__init__", "types", "errors", "seeds"},
    {"batching", "system"},
    {"data", "rewards", "model"},
    {"engines"},
    {"rollouts"},
    {"algorithms", "evaluation"},
    {"callbacks"},
    {"run"},
    {"cli"},
    {"__main__"},
)
ROOMS = {
    "system",
    "data",
    "rewards",
    "model",
    "engines",
    "rollouts",
    "algorithms",
    "evaluation",
    "callbacks",
    "run",
    "cli",
}
ROW = {room: number for number, rooms in enumerate(ROWS) for room in rooms}
STRANGERS = ({"algorithms", "callbacks"},)  # of two rows, and may not


def for_types_alone(statement: ast.stmt) -> bool:
    """`if TYPE_CHECKING: ...`"""
    return (
        isinstance(statement, ast.If) and isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING"
    )


def imported_names(source: str, package: tuple[str, ...], *, types: bool = True) -> Iterator[str]:
    """Dotted names that a module of `package` imports, wherever in the module and under whatever condition.

    Without `types`, those that only a type checker follows are left out.
    """
    tree = ast.parse(source)
    tree.body = [statement for statement in tree.body if types or not for_types_alone(statement)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    return ROW[imported] < ROW[importer] and not any({importer, imported} <= strangers for strangers in STRANGERS)


def wrong_arrows(root: Path) -> list[str]:
    """One line for every import in `root`'s package that points the wrong way, and every file that is in no room."""
    problems = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        importer = parts[1]
        if importer not in ROW:
            problems.append(f"{'/'.join(parts)}.py: {importer} is no room; see ROWS in tests/test_architecture.py")
            continue
        for name in imported_names(path.read_text(encoding="utf-8"), parts[:-1], types=importer != "__init__"):
            top, *rest = name.split(".")
            if top in DOORS:
                problems.append(f"{'/'.join(parts)}.py: imports {name} through a symlink; write {PACKAGE}.{name}")
            if top != PACKAGE:
                continue
            imported = rest[0] if rest and rest[0] in ROW else "__init__"  # where all other names are defined
            if not may_import(importer, imported):
                problems.append(f"{'/'.join(parts)}.py: {importer} must not import {imported} ({name})")
    return problems


def test_imports_point_one_way() -> None:
    assert wrong_arrows(ROOT) == []


def test_the_package_is_eleven_rooms_and_what_all_of_them_know() -> None:
    folders = {path.name for path in (ROOT / PACKAGE).iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders == ROOMS
    assert {path.stem for path in (ROOT / PACKAGE).glob("*.py")} | ROOMS == set(ROW)


def test_a_file_has_one_subject() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in (ROOT / PACKAGE).rglob("*.py")}
    assert {path: lines for path, lines in long.items() if lines > 300} == {}


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("run/loop.py", "from rloop_lightning.algorithms import base", None),
        ("rewards/math.py", "from .base import Reward\nfrom ..types import Problem", None),
        (
            "data/readable.py",
            "import rloop_lightning.rewards",
            "data must not import rewards (rloop_lightning.rewards)",
        ),
        ("model/policy.py", "from rloop_lightning import __version__", None),
        (
            "types.py",
            "import rloop_lightning.model.policy",
            "types must not import model (rloop_lightning.model.policy)",
        ),
        ("model/policy.py", "from rloop_lightning import run", "model must not import run (rloop_lightning.run)"),
        ("rewards/math.py", "from ..run.loop import X", "rewards must not import run (rloop_lightning.run.loop.X)"),
        ("rewards/math.py", "import rloop_lightning.model", "rewards must not import model (rloop_lightning.model)"),
        (
            "engines/base.py",
            "def f():\n    import rloop_lightning.cli",
            "engines must not import cli (rloop_lightning.cli)",
        ),
        (
            "algorithms/dapo.py",
            "if TYPE_CHECKING:\n    from rloop_lightning.callbacks import capture",
            "algorithms must not import callbacks (rloop_lightning.callbacks.capture)",
        ),
        (
            "callbacks/capture.py",
            "from rloop_lightning.algorithms.dapo import DAPO",
            "callbacks must not import algorithms (rloop_lightning.algorithms.dapo.DAPO)",
        ),
        ("__init__.py", "if TYPE_CHECKING:\n    from rloop_lightning.run.loop import LoopRunner", None),
        (
            "__init__.py",
            "from rloop_lightning.run.loop import LoopRunner",
            "__init__ must not import run (rloop_lightning.run.loop.LoopRunner)",
        ),
        (
            "types.py",
            "if TYPE_CHECKING:\n    from rloop_lightning.run.loop import LoopRunner",
            "types must not import run (rloop_lightning.run.loop.LoopRunner)",
        ),
        ("run/loop.py", "import algorithms.dapo", "imports algorithms.dapo through a symlink; write "),
        ("elsewhere.py", "", "elsewhere is no room; see ROWS"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path: Path, path: str, source: str, expected: str | None) -> None:
    file = tmp_path / PACKAGE / path
    file.parent.mkdir(parents=True)
    file.write_text(source, encoding="utf-8")
    problems = wrong_arrows(tmp_path)
    if expected is None:
        assert problems == []
    else:
        assert len(problems) == 1
        assert problems[0].startswith(f"{PACKAGE}/{path}: {expected}")


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples"])
def test_nothing_beside_the_package_imports_through_the_symlinks(folder: str) -> None:
    through = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in imported_names(path.read_text(encoding="utf-8"), (folder,))
        if name.split(".")[0] in DOORS
    ]
    assert through == []


@pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="a source distribution holds files alone, no links")
@pytest.mark.parametrize("door", DOORS)
def test_the_root_holds_relative_symlinks_into_the_package(door: str) -> None:
    assert (ROOT / door).is_symlink()
    assert (ROOT / door).readlink() == Path(PACKAGE) / door
    assert (ROOT / door).is_dir()
