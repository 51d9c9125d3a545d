"""Imports point one way, from the command line down to the data types; nothing imports through the root's symlinks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "rloop_lightning"
DOORS = ("algorithms", "callbacks", "configs")

# From the bottom up; a module imports from its own layer and from those above it in this list. `__init__` is the
# package's own, which every import runs.
LAYERS = (
    {"__init__", "types", "shapes", "atomic", "checksums", "faults", "signals"},
    {"advantages", "losses", "metrics", "llama", "packing", "token_scores", "routers"},
    {"hub_access", "model_folder", "policy_scores", "routing"},
    {"policy", "rewards", "pool", "filter", "data", "engines", "run_metrics", "report"},
    {"evaluation", "reference", "replay_buffer"},
    {"algorithms", "callbacks"},
    {"loop", "state", "parts", "handover", "run_folder", "resume", "registry", "arguments", "diagnosis", "run_start"},
    {"cli", "data_cli"},
    {"commands"},
    {"__main__"},
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
STRANGERS = ({"algorithms", "callbacks"},)  # one layer, yet none may know another


def imported_names(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that a module of `package` imports, wherever in the module and under whatever condition."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def wrong_arrows(root: Path) -> list[str]:
    """One line for every import in `root`'s package that points the wrong way, and every module without a layer."""
    problems = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        importer = parts[1]
        if importer not in LEVEL:
            problems.append(
                f"{'/'.join(parts)}.py: {importer} has no layer; add it to LAYERS in tests/test_architecture.py"
            )
            continue
        for name in imported_names(path.read_text(encoding="utf-8"), parts[:-1]):
            top, *rest = name.split(".")
            if top in DOORS:
                problems.append(f"{'/'.join(parts)}.py: imports {name} through a symlink; write {PACKAGE}.{name}")
            if top != PACKAGE:
                continue
            # A name that is no module's is defined in the package's `__init__`.
            is_module = rest and any((root / PACKAGE / f"{rest[0]}{end}").exists() for end in ("", ".py"))
            imported = rest[0] if is_module else "__init__"
            strangers = any({importer, imported} <= group for group in STRANGERS) and importer != imported
            if LEVEL.get(imported, -1) > LEVEL[importer] or strangers:
                problems.append(f"{'/'.join(parts)}.py: {importer} must not import {imported} ({name})")
    return problems


def test_imports_point_one_way() -> None:
    assert (ROOT / PACKAGE / "types.py").is_file()  # or there would be nothing to read
    assert wrong_arrows(ROOT) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("loop.py", "from rloop_lightning.algorithms import base", None),
        ("policy.py", "from rloop_lightning.rewards.math import Math", None),  # the same layer
        ("rewards/math.py", "from .base import Reward\nfrom ..types import Problem", None),
        ("losses.py", "from rloop_lightning import __version__", None),
        ("types.py", "import rloop_lightning.losses", "types must not import losses (rloop_lightning.losses)"),
        ("losses.py", "from rloop_lightning import policy", "losses must not import policy (rloop_lightning.policy)"),
        ("rewards/math.py", "from ..loop import X", "rewards must not import loop (rloop_lightning.loop.X)"),
        ("rewards/__init__.py", "from .. import loop", "rewards must not import loop (rloop_lightning.loop)"),
        ("policy.py", "def f():\n    import rloop_lightning.cli", "policy must not import cli (rloop_lightning.cli)"),
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
        (
            "__init__.py",
            "from .policy import Policy",
            "__init__ must not import policy (rloop_lightning.policy.Policy)",
        ),
        ("loop.py", "import algorithms.dapo", "imports algorithms.dapo through a symlink; write "),
        ("elsewhere.py", "", "elsewhere has no layer; add it to LAYERS"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path: Path, path: str, source: str, expected: str | None) -> None:
    for module in (
        "types",
        "losses",
        "policy",
        "loop",
        "cli",
        "rewards/__init__",
        "algorithms/__init__",
        "callbacks/__init__",
    ):
        file = tmp_path / PACKAGE / f"{module}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / PACKAGE / path).write_text(source, encoding="utf-8")
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


@pytest.mark.parametrize("door", DOORS)
def test_the_root_holds_relative_symlinks_into_the_package(door: str) -> None:
    assert (ROOT / door).is_symlink()
    assert (ROOT / door).readlink() == Path(PACKAGE) / door
    assert (ROOT / door).is_dir()
