"""The presets of `--config NAME`: settings files that ship with the package. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path


def preset_folder() -> Path:
    """The folder of the presets."""
    return Path(__file__).parents[1] / "configs"


def preset_names() -> list[str]:
    """The names of all presets, sorted."""
    return sorted(file.stem for file in preset_folder().glob("*.yaml"))
