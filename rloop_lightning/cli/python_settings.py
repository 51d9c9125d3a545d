"""Converts the arguments of `train` to command-line flags, so that both get the same meaning and checks.

given = PythonSettings()
given.groups({"loop": {"rounds": 2}})                 flags: --loop.rounds=2
given.parts({"algo": {"name": MyAlgo, "lr": 1e-5}})   flags: --algo=my_module.MyAlgo --algo.lr=1e-05
given.parts({"reward": my_function})                  flags: --reward=my_module.my_function
given.parts({"reward": lambda p, c: ...})             flags: --reward.name=<function ...>, objects: {"reward": ...}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rloop_lightning.cli.swappable import SWAPPABLE
from rloop_lightning.rewards.function import FunctionReward
from rloop_lightning.system.imports import import_path, unnamed
from rloop_lightning.system.terminal import one_line

_ALSO = {"data": ", rows (a list of dicts, or a Dataset)", "reward": ", a function"}
"""Further forms that a part accepts, for messages."""


@dataclass
class PythonSettings:
    """The converted arguments of `train`.

    Args:
        flags: as on the command line, `--flag=value` each.
        objects: by group, objects without an import path, which are passed on directly.
        unnamed: by group, their placeholders in config.yaml.
        wrong: errors, one message each.
    """

    flags: list[str] = field(default_factory=list)
    objects: dict[str, Any] = field(default_factory=dict)
    unnamed: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def options(self, values: Mapping[str, Any]) -> None:
        """Add `--NAME value` for each value that is not None, and once per item of a list."""
        for name, value in values.items():
            items = value if isinstance(value, list | tuple) else [value]
            self.flags += [f"--{name}={item}" for item in items if item is not None]

    def groups(self, values: Mapping[str, Any]) -> None:
        """Add groups of settings, given as dicts of fields or as dataclass instances."""
        for group, value in values.items():
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = {item.name: _unfolded(getattr(value, item.name)) for item in dataclasses.fields(value)}
            if value is not None and not isinstance(value, Mapping):
                self.wrong.append(f"{group}: expected a dict of its fields, got {_shown(value)}")
            elif value is not None:
                self._fields(group, value)

    def parts(self, values: Mapping[str, Any]) -> None:
        """Add swappable parts.

        Each is a short name, an import path, a class, an object, or a dict with one of those as `name` and with fields.
        """
        for group, value in values.items():
            fields = dict(value) if isinstance(value, Mapping) else {"name": value}
            name = fields.pop("name", None)
            path = str(name) if isinstance(name, str | Path) else import_path(name)
            if name is not None and path is None:
                self._object(group, name, fields)
                continue
            self.options({group: path})
            self._fields(group, fields)

    def data_files(self, sets: Mapping[str, str]) -> None:
        """Add the files of problem sets: `train`, and the evaluation sets."""
        self.options({"data": sets["train"]})
        if evaluation := {name: file for name, file in sets.items() if name != "train"}:
            self._fields("data", {"eval": evaluation})

    def _fields(self, group: str, fields: Mapping[str, Any]) -> None:
        for name, value in fields.items():
            try:
                self.flags.append(f"--{group}.{name}={_text(value)}")
            except (TypeError, ValueError):
                self.wrong.append(
                    f"{group}.{name}: config.yaml can't hold {_shown(value)}; take numbers, texts, lists and dicts, "
                    "and for an object {'class_path': ..., 'init_args': {...}}"
                )

    def _object(self, group: str, thing: Any, fields: Mapping[str, Any]) -> None:
        """Add something without an import path: an object, or a class or function that is not in a module."""
        try:
            self.objects[group] = _made(group, thing, fields)
        except (TypeError, ValueError) as error:
            self.objects[group] = None  # counts as given, so that no further errors about it follow
            self.wrong += [f"{group}: {line}" for line in str(error).splitlines()]
        self.unnamed[group] = unnamed(thing)
        self.options({f"{group}.name": self.unnamed[group]})


def _made(group: str, thing: Any, fields: Mapping[str, Any]) -> Any:
    """The part that is, or is made from, something without an import path.

    Raises:
        TypeError, ValueError: it is not a part, or its fields are wrong.
    """
    base = SWAPPABLE[group].base
    if isinstance(thing, type) and issubclass(thing, base):
        return thing(**fields)
    if isinstance(thing, base):
        if fields:
            raise TypeError(f"give {', '.join(fields)} to {type(thing).__name__} where you make it")
        return thing
    if callable(thing) and issubclass(FunctionReward, base):
        return FunctionReward(thing, **fields)
    raise TypeError(
        f"can't take {_shown(thing)}; expected a short name, an import path{_ALSO.get(group, '')}, or a "
        f"{base.__name__} or its class"
    )


def _unfolded(value: Any) -> Any:
    """A group of settings inside of a group as a dict."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _text(value: Any) -> str:
    """A setting as written on the command line."""
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    path = import_path(value)
    if path is None:
        raise TypeError
    return path


def _shown(value: Any) -> str:
    return one_line(repr(value), limit=80)
