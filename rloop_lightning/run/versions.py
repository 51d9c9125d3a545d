"""The software of a run: versions, and the commit of a checkout."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rloop_lightning

_PACKAGES = ("rloop-lightning", "lightning")
_SECONDS = 5  # that git may take


def running_versions() -> dict[str, str]:
    """Versions by name. `commit` is that of the checkout that the package is imported from; `-dirty` marks changes."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a copy of the package that was not installed
            continue
    commit = _commit(Path(rloop_lightning.__file__).parents[1])
    return {**found, "commit": commit} if commit else found


def _commit(checkout: Path) -> str:
    """The commit of a git checkout; empty if it is none, or git can't read it."""
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
