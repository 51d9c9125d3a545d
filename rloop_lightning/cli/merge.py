"""Merges settings files for the classes that were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from rloop_lightning.cli.config_files import INSTEAD
from rloop_lightning.cli.registry import find_class
from rloop_lightning.cli.swappable import SWAPPABLE

if TYPE_CHECKING:
    from rloop_lightning.cli.arguments import Choice


def merged(configs: Sequence[Mapping[str, Any]], choices: Mapping[str, Choice]) -> dict[str, Any]:
    """Merge the configuration files; later files override earlier ones key by key.

    If a file configures another class than the chosen one, only fields that the chosen class has as well are kept:
    `--config countdown --algo grpo` keeps the preset's learning rate and drops DAPO's own fields. What the file has for
    the chosen class under `instead` comes on top.
    """
    found: dict[str, Any] = {}
    for config in configs:
        for group, values in config.items():
            if values is None:  # an empty group
                continue
            if not isinstance(values, dict):
                found[group] = values
                continue
            choice = choices.get(group)
            if choice is not None:
                others = values.get(INSTEAD, {})
                values = {key: value for key, value in values.items() if key != INSTEAD}
                if values.get("name", choice.name) != choice.name:
                    forgotten = _fields_of(group, values["name"]) - fields_of(choice.cls)
                    values = {key: value for key, value in values.items() if key not in forgotten}
                    values |= others.get(choice.name, {})
            found.setdefault(group, {}).update({key: value for key, value in values.items() if key != "name"})
    return found


def _fields_of(group: str, name: str) -> set[str]:
    """The fields of the class of this name; empty if the name is unknown."""
    try:
        return fields_of(find_class(SWAPPABLE[group].registry, name, SWAPPABLE[group].base))
    except ValueError:
        return set()


def fields_of(cls: type | None) -> set[str]:
    """The names of a class's arguments, including inherited ones."""
    if cls is None:
        return set()
    return {name.partition(".")[2] for name in ArgumentParser(exit_on_error=False).add_class_arguments(cls, "part")}
