"""What is declared is imported, and what is imported is declared."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

# What no file imports, by where its use is seen: files, and a text in one of them.
USED_OTHERWISE = {
    "tensorboard": ("rloop_lightning/**/*.py", "TensorBoardLogger"),
    "build": ("tests/test_packaging.py", '"-m", "build"'),
    "hatchling": ("pyproject.toml", 'build-backend = "hatchling.build"'),
    "ipykernel": ("examples/first_run.ipynb", '"name": "python3"'),
    "pytest-timeout": ("pyproject.toml", "timeout = 300"),
    "pytest-xdist": ("Makefile", "pytest -n"),
    "ruff": ("Makefile", "ruff check"),
    "mypy": ("Makefile", "-m mypy"),
    "types-pyyaml": ("pyproject.toml", "tool.mypy"),
    "types-tqdm": ("pyproject.toml", "tool.mypy"),
    "pre-commit": (".pre-commit-config.yaml", "repos:"),
    "s3fs": ("rloop_lightning/system/store_urls.py", '("s3fs", '),
    "gcsfs": ("rloop_lightning/system/store_urls.py", '("gcsfs", '),
    "moto": ("tests/helpers/s3_server.py", 'importorskip("moto.server"'),
    "mkdocs-material": ("mkdocs.yml", "name: material"),
    "mkdocstrings-python": ("mkdocs.yml", "mkdocstrings:"),
}
# What is imported where it is there, and can't be an extra: it is built for one GPU and one release of torch.
# wandb is imported for a logger that the user made of it. vLLM is imported in an environment of its own.
UNDECLARED = {"flash-attn", "vllm", "wandb"}
# The interpreter of another environment runs this side of a benchmark (`--vllm-python`).
ELSEWHERE = {"benchmarks/side_vllm.py"}


def names(requirements: Iterable[str]) -> set[str]:
    """The distributions that requirements name, without the project itself."""
    return {canonicalize_name(Requirement(text).name) for text in requirements} - {PROJECT["name"]}


def imported(*folders: str) -> set[str]:
    """The distributions that the Python files of some folders import, wherever in the file."""
    distributions = packages_distributions()
    own = {path.stem for folder in ("tests", "examples") for path in (ROOT / folder).rglob("*")}
    own |= {"rloop_lightning", "benchmarks", "studies"}
    found: set[str] = set()
    for path in python_files(folders):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module or "")
    modules = {name.partition(".")[0] for name in found} - own - sys.stdlib_module_names
    return {canonicalize_name(distributions.get(module, [module])[0]) for module in modules}


def python_files(folders: Iterable[str]) -> list[Path]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [path for path in files if path.relative_to(ROOT).as_posix() not in ELSEWHERE]


def test_the_package_imports_what_it_declares_and_nothing_else() -> None:
    declared = names([*PROJECT["dependencies"], *EXTRAS["hub"], *EXTRAS["lora"], *EXTRAS["qlora"]])
    assert imported("rloop_lightning") - UNDECLARED == declared - USED_OTHERWISE.keys()


@pytest.mark.parametrize(
    ("extras", "folders"),
    [(("test", "lint", "docs"), ("tests", "examples", "docs")), (("bench",), ("benchmarks",))],
)
def test_an_extra_is_what_its_folders_import_beside_the_package(
    extras: tuple[str, ...], folders: tuple[str, ...]
) -> None:
    declared = names(text for extra in extras for text in EXTRAS[extra])
    theirs = imported(*folders)
    assert declared - theirs - USED_OTHERWISE.keys() == set()
    assert theirs - declared - names(PROJECT["dependencies"]) == set()


def test_the_other_extras_are_made_of_these() -> None:
    assert set(EXTRAS) == {"test", "lint", "docs", "dev", "hub", "lora", "qlora", "s3", "gs", "bench"}
    assert names(EXTRAS["dev"]) == {"pre-commit"}


def test_what_no_file_imports_is_used_where_the_list_says() -> None:
    unused = [
        name
        for name, (files, text) in USED_OTHERWISE.items()
        if not any(text in path.read_text(encoding="utf-8") for path in ROOT.glob(files))
    ]
    assert unused == []
    assert USED_OTHERWISE.keys() <= names([*PROJECT["dependencies"], *chain.from_iterable(EXTRAS.values())])


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3", "2.6.5"])
def test_compromised_releases_of_lightning_are_excluded(version: str) -> None:
    (lightning,) = [Requirement(text) for text in PROJECT["dependencies"] if text.startswith("lightning")]
    assert version not in lightning.specifier
    assert "2.6.6" in lightning.specifier
