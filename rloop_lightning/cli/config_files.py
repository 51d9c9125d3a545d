"""Reads the settings files of `--config`: YAML with one mapping per group.

A swappable part is written in one of three ways:

    algo: grpo
    algo: {name: grpo, lr: 1.0e-5}
    algo: {class_path: grpo, init_args: {lr: 1.0e-5}}      # as in a LightningCLI's file

`instead` holds the fields of other classes, for when one of them is chosen over the file's own:

    consolidate: {name: average, alpha: 0.75, instead: {rft: {lr: 2.0e-4, epochs: 4}}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rloop_lightning.cli.presets import preset_folder, preset_names
from rloop_lightning.cli.registry import names
from rloop_lightning.cli.swappable import SWAPPABLE, expand
from rloop_lightning.cli.yaml_text import MOST_BYTES, YAMLFault, load_settings, repeated_keys
from rloop_lightning.run.settings import VERSION_KEY
from rloop_lightning.run.state import STATE_VERSION
from rloop_lightning.system.regular_files import exists, not_a_file, open_regular
from rloop_lightning.system.terminal import one_line

CLASS_PATH, INIT_ARGS = "class_path", "init_args"
INSTEAD = "instead"

_ON_THE_COMMAND_LINE = ("config", "resume", "trust")


def read_config(name: str, wrong: list[str]) -> dict[str, Any]:
    """The settings of a file, or of a packaged preset by name, as they are written. Nothing that they name is imported.

    Args:
        wrong: takes what is wrong, one message each, with file and key. If the file can't be read, nothing is returned.
    """
    given = Path(name)
    preset = preset_folder() / f"{name}.yaml"
    path = given if exists(given) and not not_a_file(given) else preset
    shown = one_line(name, limit=200)
    if not exists(path):
        kind = not_a_file(given)
        found = f"{shown!r} is {kind}, not a file" if kind else f"no file {shown!r}"
        wrong.append(f"--config: {found}, and no preset of that name; presets are {', '.join(preset_names())}")
        return {}
    settings = settings_in(path, f"--config {shown}", wrong)
    return placed(name, settings, wrong)


def settings_in(path: Path, shown: str, wrong: list[str]) -> dict[str, Any]:
    """The content of a YAML file that holds groups of settings.

    Args:
        shown: the file, for messages.
        wrong: takes what is wrong, one message each. If the file can't be read, nothing is returned.
    """
    try:
        text = _text(path)
        settings = load_settings(text)
        faults = [
            f"{one_line(key)}: it is there twice, the second time in line {line}; keep one"
            for key, line in repeated_keys(text)
        ]
    except YAMLFault as fault:
        wrong.append(f"{shown}: {fault}")
        return {}
    if not isinstance(settings, dict):
        got = "nothing" if settings is None else type(settings).__name__
        wrong.append(f"{shown}: expected groups of settings such as `loop:`, got {got}")
        return {}
    wrong += [f"{shown}: {fault}" for fault in faults]
    return settings


def placed(name: str, settings: dict[str, Any], wrong: list[str]) -> dict[str, Any]:
    """The settings without those that a file can't have.

    Args:
        name: their file, for messages.
        settings: as they are written; changed in place.
        wrong: takes what is wrong, one message each, with file and key.
    """
    wrong += [f"--config {one_line(name, limit=200)}: {fault}" for fault in _misplaced(settings)]
    return settings


def with_parts(name: str, settings: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    """The settings with every swappable part as its name and fields. It may import a function that a part names.

    Args:
        name: their file, for messages.
        settings: from `read_config`.
        wrong: takes what is wrong, one message each, with file and key.
    """
    settings = dict(settings)
    faults: list[str] = []
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
            faults += _faults_of_others(group, settings[group])
    wrong += [f"--config {one_line(name, limit=200)}: {fault}" for fault in faults]
    return settings


def _faults_of_others(group: str, settings: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the fields of other classes; they are taken out."""
    others = settings.get(INSTEAD, {})
    known = names(SWAPPABLE[group].registry)
    if not isinstance(others, dict) or not all(isinstance(fields, dict) for fields in others.values()):
        yield f"{group}.{INSTEAD}: expected fields by name, such as {{NAME: {{FIELD: value}}}}"
        del settings[INSTEAD]
    elif strange := [one_line(repr(name)) for name in others if "." not in str(name) and name not in known]:
        yield f"{group}.{INSTEAD}: unknown {', '.join(strange)}; take class paths, or {', '.join(sorted(known))}"
        del settings[INSTEAD]


def _text(path: Path) -> str:
    """The text of a settings file.

    Raises:
        YAMLFault: it can't be read, or is too large.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise YAMLFault(f"can't be read: {error.strerror or error}") from error
    if len(content) > MOST_BYTES:
        raise YAMLFault(f"larger than {MOST_BYTES:,} bytes, which no settings file is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise YAMLFault("UTF-16, save the file as UTF-8") from error
        line = content.count(b"\n", 0, error.start) + 1
        raise YAMLFault(f"line {line}: not UTF-8 text: byte {content[error.start]:#04x}") from error


def _misplaced(settings: dict[str, Any]) -> Iterator[str]:
    """What a file can't set; it is taken out."""
    version = settings.pop(VERSION_KEY, 0)
    if not isinstance(version, int) or version > STATE_VERSION:
        yield (
            f"{VERSION_KEY}: the settings are of version {one_line(repr(version))}, and this package reads versions up "
            f"to {STATE_VERSION}; install the rloop-lightning that wrote them, or a newer one"
        )
    for key in _ON_THE_COMMAND_LINE:
        if settings.pop(key, None) not in (None, False):
            yield f"{key}: give --{key} on the command line, not in a file"
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
