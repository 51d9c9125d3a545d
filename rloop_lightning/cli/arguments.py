"""The command line before parsing: configuration files, and the classes of the swappable parts.

`--algo NAME` decides which fields `--algo.FIELD` may set. So the names are resolved first, from the command line and
the configuration files. The parser is then built for their classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from rloop_lightning.cli.config_files import (
    CLASS_PATH,
    INIT_ARGS,
    placed,
    read_config,
    with_parts,
    without_class_path,
)
from rloop_lightning.cli.merge import merged
from rloop_lightning.cli.printing import config_faults
from rloop_lightning.cli.registry import NONE, find_class
from rloop_lightning.cli.swappable import SWAPPABLE, Swappable, expand, names_with
from rloop_lightning.cli.trust import chosen_paths, code_faults
from rloop_lightning.cli.yaml_text import YAMLFault, load_yaml, repeated_keys
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.settings import state_settings
from rloop_lightning.run.start import resume_faults
from rloop_lightning.system.imports import is_unnamed
from rloop_lightning.system.terminal import one_line

DEFAULT_PRESET = "countdown"

# Options that end the program instead of setting anything.
HELP_ALL, PRINT_CONFIG, PRINT_SHTAB = "--help_all", "--print_config", "--print_shtab"
TRUST = "--trust"

_NEED_A_VALUE = ("--config", "-c", "--resume", "--out", PRINT_SHTAB)


class UsageError(Exception):
    """The user's input is wrong. The message names each error and its fix, one per line."""


@dataclass(frozen=True)
class Choice:
    """The user's choice for a swappable group. `cls` is None for `none`, a Python object, or an unknown name."""

    name: str
    cls: type | None


class Arguments:
    """The command line, split into its parts. Errors are collected, so that they are reported at once.

    Args:
        argv: command line arguments.
        objects: by group, parts given as Python objects; `--GROUP.name` is the placeholder of one.

    Attributes:
        choices: the class for each swappable group.
        configuration: the merged configuration files, for a parser built for these classes.
        flags: the rest of the command line, for the same parser.
        wrong: errors about unreadable files and unknown names.
        resumable: whether the run of --resume can be read.
        undecided: groups whose class is unknown because of such an error.
        shows: the option that prints something and ends the program, with its value; None if none is given.
        takes_preset: whether the settings are those of `preset`, since neither files nor a model are named.
    """

    swappable: Mapping[str, Swappable] = SWAPPABLE  # the swappable groups of the command
    preset: str | None = DEFAULT_PRESET  # the settings without --config and --policy.model
    first_names: Sequence[str] = ()  # settings files that those of the command line override

    def __init__(self, argv: Sequence[str], objects: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._objects = objects
        self.wrong: list[str] = []
        self.resumable = True
        self.flags: list[str] = []
        self.shows: tuple[str, str] | None = None
        self._names = list(self.first_names)
        self._of_runs: dict[str, RunFolder] = {}
        self._named: dict[str, str] = {}
        self._trusts = False
        for flag, value in pairs(argv):
            self._take(flag, value)
        self._on_command_line = frozenset(self._named)
        if self._trusts and not self._of_runs:
            self.wrong.append(f"{TRUST} needs --resume RUN")
        names_model = any(flag.startswith("--policy.model") for flag in self.flags)
        self.takes_preset = bool(self.preset) and not self._names and not names_model
        if self.preset and self.takes_preset:
            self._names.append(self.preset)
        written = [(name, self._read_config(name)) for name in self._names]
        if not self._trusts:
            self._refuse_strange_code(argv, written)
        self._configs = [self._with_parts(name, settings) for name, settings in written]
        self.choices = {group: self._choose(group) for group in self.swappable if group != "reward"}
        source = type(objects["data"]) if "data" in objects else self.choices["data"].cls
        self._named.setdefault("reward", self._named_in("reward") or _reward_of(source))
        self.choices["reward"] = self._choose("reward")
        self.undecided = frozenset(
            group
            for group, choice in self.choices.items()
            if choice.cls is None and choice.name != NONE and group not in objects
        )
        self.configuration = merged(self._configs, self.choices)
        self.flags = [*(f"--{group}.name={choice.name}" for group, choice in self.choices.items()), *self.flags]

    def file_of(self, key: str) -> str:
        """The configuration file that sets a key; if several do, the last one, which overrides the others."""
        holders = [name for name, config in zip(self._names, self._configs, strict=True) if _holds(config, key)]
        return holders[-1] if holders else self._names[-1]

    def is_recorded(self, key: str) -> bool:
        """Whether a setting is that of the resumed run, rather than given for this resume."""
        given = any(flag.partition("=")[0] in (f"--{key}", f"--{key.partition('.')[0]}") for flag in self.flags)
        return not given and self.file_of(key) in self._of_runs

    def others_with(self, key: str) -> list[str]:
        """For an option of a part, the short names of the classes that have it, but for the chosen one."""
        group, _, field = key.partition(".")
        if group not in self.choices or group not in SWAPPABLE:
            return []
        return [name for name in names_with(group, field) if name != self.choices[group].name]

    def _take(self, flag: str, value: str | None) -> None:
        group, _, field = flag.removeprefix("--").partition(".")
        in_part = flag.startswith("--") and group in self.swappable
        self.wrong += [f"{flag}: {one_line(key)}: it is there twice; keep one" for key in _keys_twice(value)]
        swaps = in_part and field in ("", "name", CLASS_PATH)
        if not value and (swaps or flag in _NEED_A_VALUE):
            self.wrong.append(f"{flag} needs a value")
        elif flag in (HELP_ALL, PRINT_CONFIG, PRINT_SHTAB) or flag.endswith(".help"):
            self._show(flag, value or "")
        elif flag in ("--config", "-c"):
            self._names.append(value or "")
        elif flag == TRUST and value is None:
            self._trusts = True
        elif (swaps and re.fullmatch(r"{.*}", value or "", re.DOTALL)) or (in_part and field == INIT_ARGS):
            self._take_mapping(flag, group, value or "")
        elif swaps:
            self._choose_part(group, value or "")
        elif value is None:
            self.flags.append("--plan.only=true" if flag == "--plan" else flag)
        else:
            if flag == "--resume":
                self._resume(RunFolder(Path(value)))
            if in_part and field.startswith(f"{INIT_ARGS}."):
                flag = f"--{group}.{field.removeprefix(f'{INIT_ARGS}.')}"
            self.flags.append(f"{flag}={value}")

    def _show(self, flag: str, value: str) -> None:
        self.shows = self.shows or (flag, value)
        if flag == PRINT_CONFIG:
            self.wrong += config_faults(value)
        if flag == HELP_ALL and value:
            self.wrong.append(f"{flag}: takes no value, got {one_line(value)!r}")

    def _choose_part(self, group: str, name: str) -> None:
        settings = expand(group, name)
        self._named[group] = settings.pop("name")
        self.flags += [f"--{group}.{field}={value}" for field, value in settings.items()]

    def _take_mapping(self, flag: str, group: str, value: str) -> None:
        """A part as a mapping, `--algo {"name": "grpo", "lr": 1e-5}`, or its fields, `--algo.init_args {...}`."""
        try:
            fields = load_yaml(value)
        except YAMLFault:
            fields = None
        if not isinstance(fields, dict):
            self.wrong.append(f"{flag}: expected a mapping of fields, got {one_line(repr(value), limit=80)}")
            return
        faults: list[str] = []
        fields = without_class_path(group, fields, faults) if flag == f"--{group}" else fields
        self.wrong += [f"--{fault}" for fault in faults]
        if isinstance(name := fields.pop("name", None), str) and name:
            self._choose_part(group, name)
        self.flags += [f"--{group}.{name}={json.dumps(field)}" for name, field in fields.items()]

    def _resume(self, run: RunFolder) -> None:
        self._names.append(str(run.config))
        self._of_runs[str(run.config)] = run
        self.wrong += (faults := resume_faults(run))
        self.resumable = not faults

    def _read_config(self, name: str) -> dict[str, Any]:
        if name in self._of_runs and not self.resumable:  # `wrong` has the error already
            return {}
        faults: list[str] = []
        run = self._of_runs.get(name)
        settings = {} if run is None else state_settings(run)
        settings = placed(name, settings, faults) if settings else read_config(name, faults)
        self._note(name, faults)
        return settings

    def _with_parts(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        faults: list[str] = []
        expanded = with_parts(name, settings, faults)
        self._note(name, faults)
        return expanded

    def _note(self, name: str, faults: Sequence[str]) -> None:
        self.wrong += faults
        self.resumable &= not (name in self._of_runs and faults)

    def _refuse_strange_code(self, argv: Sequence[str], written: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Refuse runs whose settings name code that the user neither chose nor trusts, before it is imported.

        Raises:
            UsageError: names the code.
        """
        own = [settings for name, settings in written if name not in self._of_runs]
        chosen = chosen_paths([value for _, value in pairs(argv) if value], own)
        for name, settings in written:
            if name in self._of_runs and (faults := code_faults(self._of_runs[name].out, settings, chosen)):
                raise UsageError("\n".join(faults))

    def _choose(self, group: str) -> Choice:
        """The choice for a part: from the command line, else from the last configuration file, else the default."""
        swappable = SWAPPABLE[group]
        name = self._named.get(group) or self._named_in(group) or swappable.default
        if group in self._objects or (name == NONE and group == "consolidate"):
            return Choice(name, None)
        if is_unnamed(name):
            self.wrong.append(
                f"--{group}: the run began with a Python object that config.yaml can't name, {name}; give --{group} "
                f"MODULE.NAME, or resume from Python: train(resume=..., {group}=...)"
            )
            return Choice(name, None)
        try:
            return Choice(name, find_class(swappable.registry, name, swappable.base))
        except ValueError as error:
            self.wrong.append(f"{self._place_of_name(group)}: {error}")
            return Choice(name, None)

    def _place_of_name(self, group: str) -> str:
        """Where the name of a part is written, for messages."""
        if group in self._on_command_line or self._named_in(group) is None:
            return f"--{group}"
        file = self.file_of(f"{group}.name")
        return f"--{group}" if file in self._of_runs else f"--config {one_line(file, limit=200)}: {group}"

    def _named_in(self, group: str) -> str | None:
        """The name of a part in the last configuration file that sets one."""
        groups = [config[group] for config in self._configs if isinstance(config.get(group), dict)]
        given = [str(settings["name"]) for settings in groups if "name" in settings]
        return given[-1] if given else None


def pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Flags with their values; `--flag value` and `--flag=value` are equivalent.

    A value may begin with a dash, as in `--data.instruction "- think"`, but not with two.
    """
    arguments = list(argv)
    while arguments:
        flag = arguments.pop(0)
        if "=" in flag:
            flag, _, value = flag.partition("=")
            yield flag, value
        elif (
            flag.startswith("-")
            and arguments
            and not arguments[0].startswith("--")
            and arguments[0] not in ("-c", "-h")
        ):
            yield flag, arguments.pop(0)
        else:
            yield flag, None


def _reward_of(source: type | None) -> str:
    """The default reward of a problem source."""
    return source.reward if source is not None and issubclass(source, ProblemSource) else ProblemSource.reward


def _keys_twice(value: str | None) -> list[str]:
    """Keys that a mapping on the command line has twice, of which the parser would take the last."""
    try:
        return [key for key, _ in repeated_keys(value)] if value and value.startswith("{") else []
    except (yaml.YAMLError, RecursionError):  # the parser says what is wrong with it
        return []


def _holds(config: Mapping[str, Any], key: str) -> bool:
    settings: Any = config
    for name in key.split("."):
        if not isinstance(settings, Mapping) or name not in settings:
            return False
        settings = settings[name]
    return True
