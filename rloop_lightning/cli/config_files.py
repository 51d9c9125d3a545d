"""Reads the settings files of `--config`: YAML with one mapping per group.

A swappable part is written in one of three ways:

    algo: grpo
    algo: {name: grpo, lr: 1.0e-5}
    algo: {class_path: grpo, init_args: {lr: 1.0e-5}}      # as in a LightningCLI's file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from rloop_lightning.cli.swappable import SWAPPABLE, expand
from rloop_lightning.run.settings import VERSION_KEY
from rloop_lightning.run.state import STATE_VERSION
from rloop_lightning.system.terminal import one_line

CLASS_PATH, INIT_ARGS = "class_path", "init_args"

_ON_THE_COMMAND_LINE = ("resume", "config")


def preset_folder() -> Path:
    """The folder of the packaged presets."""
    return Path(__file__).parents[1] / "configs"


def read_config(name: str, wrong: list[str]) -> dict[str, Any]:
    """The settings of a file, or of a packaged preset by name, with every part as its name and fields.

    Args:
        wrong: takes what is wrong, one message each, with file and key. If the file can't be read, nothing is returned.
    """
    path = Path(name) if Path(name).is_file() else preset_folder() / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in preset_folder().glob("*.yaml")))
        wrong.append(
            f"--config: no file {one_line(name, limit=200)!r}, and no preset of that name; presets are {known}"
        )
        return {}
    where = f"--config {one_line(name, limit=200)}: "
    try:
        text = path.read_text(encoding="utf-8")
        settings = get_loader("yaml")(text)
        repeated = list(_repeated(yaml.compose(text, Loader=yaml.SafeLoader)))
    except Exception as error:  # the YAML parser may raise anything
        wrong.append(f"{where}not valid YAML: {one_line(' '.join(str(error).split()), limit=300)}")
        return {}
    if not isinstance(settings, dict):
        wrong.append(f"{where}expected groups of settings such as `loop:`, got {type(settings).__name__}")
        return {}
    wrong += [where + fault for fault in repeated]
    return settings_of_parts(settings, where, wrong)


def settings_of_parts(settings: dict[str, Any], where: str, wrong: list[str]) -> dict[str, Any]:
    """The settings of a file, with every part as its name and fields.

    Args:
        settings: as they are in the file; changed in place.
        where: where they are from, for messages.
        wrong: takes what is wrong, one message each.
    """
    faults = list(_misplaced(settings))
    for group in SWAPPABLE:
        if isinstance(settings.get(group), str):
            settings[group] = {"name": settings[group]}
        if isinstance(settings.get(group), dict):
            settings[group] = without_class_path(group, settings[group], faults)
            part = settings[group].get("name", "")
            if isinstance(part, str) and part:
                settings[group] |= expand(group, part)
            elif "name" in settings[group]:
                faults.append(f"{group}.name: expected a class path or a short name, got {one_line(repr(part))}")
                del settings[group]["name"]
    wrong += [where + fault for fault in faults]
    return settings


def _misplaced(settings: dict[str, Any]) -> Iterator[str]:
    """What a file can't set; it is taken out."""
    version = settings.pop(VERSION_KEY, 0)
    if not isinstance(version, int) or version > STATE_VERSION:
        yield (
            f"{VERSION_KEY}: the settings are of version {one_line(repr(version))}, and this package reads versions up "
            f"to {STATE_VERSION}; install the rloop-lightning that wrote them, or a newer one"
        )
    for key in ("config", "resume"):
        if settings.get(key) is not None:
            yield f"{key}: give --{key} on the command line, not in a file"
            del settings[key]
    if "consolidate" in settings and settings["consolidate"] is None:
        yield "consolidate: there is nothing in it; write `consolidate: none` to leave consolidation out"


def without_class_path(group: str, settings: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    """The settings of a part with `name` and fields in place of `class_path` and `init_args`.

    Args:
        wrong: takes what is wrong, one message each.
    """
    rest = {key: value for key, value in settings.items() if key not in (CLASS_PATH, INIT_ARGS)}
    fields = settings.get(INIT_ARGS)
    if fields is not None and not isinstance(fields, Mapping):
        wrong.append(f"{group}.{INIT_ARGS}: expected a mapping of fields, got {one_line(repr(fields))}")
        return rest
    if CLASS_PATH in settings:
        path = settings[CLASS_PATH]
        if "name" in rest:
            wrong.append(f"{group}.{CLASS_PATH}: {group}.name is there too; leave one of them out")
        else:
            rest = {"name": path, **rest}
    if CLASS_PATH in settings or INIT_ARGS in settings:
        beside = [str(key) for key in rest if key != "name"]
        wrong += [f"{group}.{key}: write it into {group}.{INIT_ARGS}" for key in beside]
    return {**rest, **(fields or {})}


def _repeated(node: yaml.Node | None, prefix: str = "") -> Iterator[str]:
    """Keys that a mapping holds twice; YAML would silently take the last one."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        name = f"{prefix}{key.value if isinstance(key, yaml.ScalarNode) else '...'}"
        if name in seen:
            yield f"{one_line(name)}: it is there twice, the second time in line {key.start_mark.line + 1}; keep one"
        seen.add(name)
        yield from _repeated(value, f"{name}.")
