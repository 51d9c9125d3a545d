"""The wheel carries the whole package and works outside the checkout; the source distribution passes its own tests.

And the constraints pin what CI installs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed and that sees nothing of the checkout."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "PYTEST_ADDOPTS")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    env |= {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The project's wheel."""
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    (archive,) = built.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


@dataclass(frozen=True)
class Installed:
    """A fresh virtual environment, outside the checkout, that has the wheel."""

    folder: Path
    bin: Path
    package: Path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel installed, with this environment's packages as its dependencies.

    A .pth file lends them; it is written after the installation, and the .pth files in the lent folder are not read, so
    that an editable install of the project there can neither be replaced nor imported.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "lent.pth").write_text("\n".join(sorted(lent)) + "\n", encoding="utf-8")
    return Installed(folder, python.parent, site / "rloop_lightning")


def files_of(folder: Path) -> Iterator[str]:
    """What git would keep of a folder of the project, relative to the root."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not {"__pycache__", ".hypothesis"} & set(path.parts):
            yield path.relative_to(ROOT).as_posix()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == set(files_of(ROOT / "rloop_lightning"))
    assert "rloop_lightning/py.typed" in names
    assert any(re.fullmatch(r"rloop_lightning/configs/[^/]+\.yaml", name) for name in names)
    assert "rloop_lightning/assets/countdown-policy/config.json" in names
    licences = {name.rpartition("/")[2] for name in names if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "LICENSE-d3.txt", "LICENSE-plot.txt"}


def test_the_source_distribution_holds_the_project_once(source: Path) -> None:
    """The root's links into the package are no files, and are left to the repository."""
    names = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    folders = ("rloop_lightning", "tests", "benchmarks", "studies", "docs", "examples")
    assert {name for name in names if "/" in name} == {name for folder in folders for name in files_of(ROOT / folder)}
    top = {name for name in names if "/" not in name} - {"PKG-INFO"}
    assert top == {
        ".gitignore",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "README.md",
        "constraints-vllm.txt",
        "constraints.txt",
        "mkdocs.yml",
        "pyproject.toml",
    }


def test_the_source_distribution_passes_its_own_tests(source: Path) -> None:
    """Quick ones that read its files, as running all of them here would be running them twice."""
    quick = ["tests/test_architecture.py", "tests/system/test_fields.py", "-k", "symlink or one_way or fields"]
    options = ["-p", "no:cacheprovider", "-rs"]
    said = run(sys.executable, "-m", "pytest", *options, *quick, cwd=source, PYTHONPATH=str(source))
    assert "SKIPPED [3] tests/test_architecture.py" in said
    assert "a source distribution holds files alone, no links" in said


def test_the_installed_command_shows_its_help(installed: Installed) -> None:
    assert "--algo" in run(installed.bin / "rloop-fit", "--help", cwd=installed.folder)


def test_the_installed_package_loads_its_embedded_policy(installed: Installed) -> None:
    code = """
import rloop_lightning
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy

policy = Policy.load(PolicyConfig())
print(rloop_lightning.__file__, rloop_lightning.__version__, sum(p.numel() for p in policy.parameters()), sep="\\n")
"""
    file, version, parameters = run(installed.bin / "python", "-I", "-c", code, cwd=installed.folder).split()
    assert Path(file) == installed.package / "__init__.py"
    assert version == PROJECT["version"]
    assert int(parameters) > 100_000


def test_an_installed_preset_is_read(installed: Installed) -> None:
    presets = sorted((installed.package / "configs").glob("*.yaml"))
    assert presets
    printed = run(installed.bin / "rloop-fit", "--config", presets[0], "--print_config", cwd=installed.folder)
    assert "algo" in printed


def test_the_constraints_pin_every_direct_requirement_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert [version for version in pins.values() if Version(version).local] == []
    extras = PROJECT["optional-dependencies"]
    named = chain.from_iterable(extras[extra] for extra in ("test", "lint", "docs", "dev", "hub", "bench"))
    asked = map(Requirement, [*PROJECT["dependencies"], *named])
    outside = [
        str(requirement)
        for requirement in asked
        if requirement.name != PROJECT["name"]
        and pins.get(canonicalize_name(requirement.name), "no pin") not in requirement.specifier
    ]
    assert outside == []


def test_the_package_and_its_metadata_have_one_version() -> None:
    source = (ROOT / "rloop_lightning" / "__init__.py").read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE) == [PROJECT["version"]]
