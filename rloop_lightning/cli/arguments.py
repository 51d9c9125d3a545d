"""The command line before parsing: configuration files, and the classes of the swappable parts.

`--algo NAME` decides which fields `--algo.FIELD` may set. So the names are resolved first, from the command line and
the configuration files. The parser is then built for their classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jsonargparse import ArgumentParser, get_loader

from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.consolidation import Consolidation
from rloop_lightning.cli.parse_errors import is_number
from rloop_lightning.cli.registry import NONE, find_class, is_function, names
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.hub_rows import parse_hub_name
from rloop_lightning.data.rows import looks_like_a_file
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.rewards.base import Reward
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.start import resume_faults
from rloop_lightning.system.imports import is_unnamed

DEFAULT_PRESET = "countdown"


class UsageError(Exception):
    """The user's input is wrong. The message names each error and its fix, one per line."""


@dataclass(frozen=True)
class Swappable:
    """A group of the command line whose class the user chooses.

    Args:
        registry: registry of the short names.
        base: required base class.
        default: short name used by default.
        what: description for the help.
    """

    registry: str
    base: type
    default: str
    what: str


SWAPPABLE = {
    "algo": Swappable("algorithms", Algorithm, "dapo", "the RL algorithm of the exploration"),
    "consolidate": Swappable("consolidations", Consolidation, "rft", "the fine-tuning on the expert set, or none"),
    "engine": Swappable("engines", RolloutEngine, "torch", "the engine that generates rollouts"),
    "data": Swappable("data", ProblemSource, "countdown", "the problem sets"),
    "reward": Swappable("rewards", Reward, "the data's own", "the reward, or a function as module.function"),
}


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
    """

    def __init__(self, argv: Sequence[str], objects: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._objects = objects
        self.wrong: list[str] = []
        self.resumable = True
        self.flags: list[str] = []
        self._names: list[str] = []
        self._named: dict[str, str] = {}
        for flag, value in pairs(argv):
            self._take(flag, value)
        if not self._names and not any(flag.startswith("--policy.model") for flag in self.flags):
            self._names.append(DEFAULT_PRESET)
        self._configs = [self._read_config(name) for name in self._names]
        self.choices = {group: self._choose(group) for group in SWAPPABLE if group != "reward"}
        source = type(objects["data"]) if "data" in objects else self.choices["data"].cls
        self._named.setdefault("reward", self._named_in("reward") or _reward_of(source))
        self.choices["reward"] = self._choose("reward")
        self.undecided = frozenset(
            group
            for group, choice in self.choices.items()
            if choice.cls is None and choice.name != NONE and group not in objects
        )
        self.configuration = _merge(self._configs, self.choices)
        self.flags = [*(f"--{group}.name={choice.name}" for group, choice in self.choices.items()), *self.flags]

    def file_of(self, key: str) -> str:
        """The configuration file that sets a key; if several do, the last one, which overrides the others."""
        holders = [name for name, config in zip(self._names, self._configs, strict=True) if _holds(config, key)]
        return holders[-1] if holders else self._names[-1]

    def _take(self, flag: str, value: str | None) -> None:
        group = flag.removeprefix("--").removesuffix(".name")
        swaps = flag.startswith("--") and group in SWAPPABLE
        if value is None and (swaps or flag in ("--config", "-c", "--resume")):
            self.wrong.append(f"{flag} needs a value")
        elif value is None:
            self.flags.append(flag)
        elif flag in ("--config", "-c"):
            self._names.append(value)
        elif swaps:
            settings = expand(group, value)
            self._named[group] = settings.pop("name")
            self.flags += [f"--{group}.{field}={where}" for field, where in settings.items()]
        else:
            if flag == "--resume":
                run = RunFolder(Path(value))
                self._names.append(str(run.config))
                faults = resume_faults(run)
                self.resumable = not faults
                self.wrong += faults
            self.flags.append(f"{flag}={value}")

    def _read_config(self, name: str) -> dict[str, Any]:
        try:
            return _read_config(name)
        except UsageError as error:
            if self.resumable:  # otherwise `wrong` has the error already
                self.wrong.append(str(error))
            self.resumable = False
            return {}

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
            self.wrong.append(f"--{group}: {error}")
            return Choice(name, None)

    def _named_in(self, group: str) -> str | None:
        """The name of a part in the last configuration file that sets one."""
        groups = [config[group] for config in self._configs if isinstance(config.get(group), dict)]
        given = [str(settings["name"]) for settings in groups if "name" in settings]
        return given[-1] if given else None


def preset_folder() -> Path:
    """The folder of the packaged presets."""
    return Path(__file__).parents[1] / "configs"


def pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Flags with their values; `--flag value` and `--flag=value` are equivalent."""
    arguments = list(argv)
    while arguments:
        flag = arguments.pop(0)
        if "=" in flag:
            flag, _, value = flag.partition("=")
            yield flag, value
        elif arguments and (not arguments[0].startswith("-") or is_number(arguments[0])):
            yield flag, arguments.pop(0)
        else:
            yield flag, None


def _read_config(name: str) -> dict[str, Any]:
    """The settings of a configuration file, or of a packaged preset by name."""
    path = Path(name) if Path(name).is_file() else preset_folder() / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in preset_folder().glob("*.yaml")))
        raise UsageError(f"--config: no file {name!r}, and no preset of that name; presets are {known}")
    try:
        settings = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except Exception as error:  # the YAML parser may raise anything
        raise UsageError(f"--config {name}: not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"--config {name}: expected groups of settings such as `loop:`, got {type(settings).__name__}")
    for group in SWAPPABLE:
        if isinstance(settings.get(group), str):
            settings[group] = {"name": settings[group]}
        if isinstance(settings.get(group), dict) and isinstance(name := settings[group].get("name"), str):
            settings[group] |= expand(group, name)
    return settings


def expand(group: str, name: str) -> dict[str, str]:
    """Expand a part's name to settings: `--data train.jsonl` is `--data files --data.path train.jsonl`.

    A file or folder expands to `files`, `organisation/name` to `hub`, and a function to `--reward function`. Everything
    else is a short name or a class path.
    """
    if name in names(SWAPPABLE[group].registry) or is_unnamed(name):
        return {"name": name}
    if group == "reward" and is_function(name):
        return {"name": "function", "function": name}
    if group != "data":
        return {"name": name}
    if looks_like_a_file(name):
        return {"name": "files", "path": name}
    if hub := parse_hub_name(name, "train"):
        given = {"dataset": hub.dataset, "config": hub.config, "split": hub.split, "revision": hub.revision}
        return {"name": "hub", **{field: value for field, value in given.items() if value is not None}}
    return {"name": name}


def _reward_of(source: type | None) -> str:
    """The default reward of a problem source."""
    return source.reward if source is not None and issubclass(source, ProblemSource) else ProblemSource.reward


def _holds(config: Mapping[str, Any], key: str) -> bool:
    settings: Any = config
    for name in key.split("."):
        if not isinstance(settings, Mapping) or name not in settings:
            return False
        settings = settings[name]
    return True


def _merge(configs: Sequence[Mapping[str, Any]], choices: Mapping[str, Choice]) -> dict[str, Any]:
    """Merge the configuration files; later files override earlier ones key by key.

    If a file configures another class than the chosen one, only fields that the chosen class has as well are kept:
    `--config countdown --algo grpo` keeps the preset's learning rate and drops DAPO's own fields.
    """
    merged: dict[str, Any] = {}
    for config in configs:
        for group, values in config.items():
            if values is None:  # an empty group
                continue
            if not isinstance(values, dict):
                merged[group] = values
                continue
            choice = choices.get(group)
            if choice is not None and values.get("name", choice.name) != choice.name:
                forgotten = _fields_of(group, values["name"]) - _fields(choice.cls)
                values = {key: value for key, value in values.items() if key not in forgotten}
            merged.setdefault(group, {}).update({key: value for key, value in values.items() if key != "name"})
    return merged


def _fields_of(group: str, name: str) -> set[str]:
    """The fields of the class of this name; empty if the name is unknown."""
    try:
        return _fields(find_class(SWAPPABLE[group].registry, name, SWAPPABLE[group].base))
    except ValueError:
        return set()


def _fields(cls: type | None) -> set[str]:
    """The names of a class's arguments, including inherited ones."""
    if cls is None:
        return set()
    return {name.partition(".")[2] for name in ArgumentParser(exit_on_error=False).add_class_arguments(cls, "part")}
