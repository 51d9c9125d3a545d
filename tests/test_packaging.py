"""The wheel carries the whole project and works outside the checkout; the constraints pin what CI installs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed and that sees nothing of the checkout."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "PYTEST_ADDOPTS")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    env |= {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


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


def package_files() -> Iterator[str]:
    """What git would keep of the package, relative to the root."""
    for path in sorted((ROOT / "rloop_lightning").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT).as_posix()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == set(package_files())
    assert "rloop_lightning/py.typed" in names
    assert any(re.fullmatch(r"rloop_lightning/configs/[^/]+\.yaml", name) for name in names)
    assert "rloop_lightning/assets/countdown-policy/config.json" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_installed_command_shows_its_help(installed: Installed) -> None:
    assert "--algo" in run(installed.bin / "rloop-fit", "--help", cwd=installed.folder)


def test_the_installed_package_loads_its_embedded_policy(installed: Installed) -> None:
    code = """
import rloop_lightning
from rloop_lightning.model.policy import Policy, PolicyConfig

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
    asked = map(Requirement, [*PROJECT["dependencies"], *extras["test"], *extras["lint"], *extras["dev"]])
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
