"""The command line before there is a parser: configuration files, and the classes of the parts that can be swapped.

`--algo NAME` decides which fields `--algo.FIELD` may set. So the names are looked up first, on the command line and in
the configuration files; the parser is then built for the classes that they mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, get_loader

from rloop_lightning.algorithms.base import Algorithm, Consolidation
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.hub_rows import parse_hub_name
from rloop_lightning.data.rows import looks_like_a_file
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.registry import NONE, find_class, names
from rloop_lightning.rewards.base import Reward

DEFAULT_PRESET = "countdown"


class UsageError(Exception):
    """Something is wrong with what the user gave; the message says what and what to do, a line for each thing."""


@dataclass(frozen=True)
class Swappable:
    """A group of the command line whose class the user chooses.

    Args:
        registry: where short names are looked up.
        base: what the class must be.
        default: the short name that holds without another.
        what: for the help.
    """

    registry: str
    base: type
    default: str
    what: str


SWAPPABLE = {
    "algo": Swappable("algorithms", Algorithm, "dapo", "the algorithm that explores"),
    "consolidate": Swappable("consolidations", Consolidation, "rft", "what is done with the expert set, or none"),
    "engine": Swappable("engines", RolloutEngine, "torch", "what generates rollouts"),
    "data": Swappable("data", ProblemSource, "countdown", "the problem sets"),
    "reward": Swappable("rewards", Reward, "the data's own", "how completions are scored"),
}


@dataclass(frozen=True)
class Choice:
    """What the user chose for a swappable group; `cls` is None for `none`."""

    name: str
    cls: type | None


class Arguments:
    """The command line, taken apart.

    Attributes:
        choices: the class for each swappable group.
        for_parser: the command line for a parser that is built for these classes.

    Raises:
        UsageError: a file that can't be read, or a name that means nothing.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        rest: list[str] = []
        config_names: list[str] = []
        named: dict[str, str] = {}
        for flag, value in _pairs(argv):
            group = flag.removeprefix("--").removesuffix(".name")
            if flag in ("--config", "-c"):
                config_names.append(_needed(flag, value))
            elif flag == "--resume":
                config_names.append(_config_of_run(_needed(flag, value)))
                rest.append(f"{flag}={value}")
            elif flag.startswith("--") and group in SWAPPABLE:
                settings = expand(group, _needed(flag, value))
                named[group] = settings.pop("name")
                rest += [f"--{group}.{field}={where}" for field, where in settings.items()]
            else:
                rest.append(flag if value is None else f"{flag}={value}")
        if not config_names and not any(argument.startswith("--policy.model") for argument in rest):
            config_names.append(DEFAULT_PRESET)
        configs = [_read_config(name) for name in config_names]
        self.choices = {group: _choose(group, named.get(group), configs) for group in SWAPPABLE if group != "reward"}
        source = self.choices["data"].cls
        assert source is not None
        assert issubclass(source, ProblemSource)
        named.setdefault("reward", _named_in(configs, "reward") or source.reward)
        self.choices["reward"] = _choose("reward", named["reward"], configs)
        chosen = [f"--{group}.name={choice.name}" for group, choice in self.choices.items()]
        self.for_parser = ["--config", json.dumps(_merge(configs, self.choices)), *chosen, *rest]


def preset_folder() -> Path:
    """Where the packaged presets are."""
    return Path(__file__).parent / "configs"


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Flags with their values; `--flag value` and `--flag=value` are the same."""
    arguments = list(argv)
    while arguments:
        flag = arguments.pop(0)
        if "=" in flag:
            flag, _, value = flag.partition("=")
            yield flag, value
        elif arguments and (not arguments[0].startswith("-") or _is_number(arguments[0])):
            yield flag, arguments.pop(0)
        else:
            yield flag, None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _needed(flag: str, value: str | None) -> str:
    if value is None:
        raise UsageError(f"{flag} needs a value")
    return value


def _config_of_run(run: str) -> str:
    config = Path(run) / "config.yaml"
    if not config.is_file() or not (Path(run) / "state.json").is_file():
        raise UsageError(f"--resume {run}: no config.yaml and state.json there; give the folder of a begun run")
    return str(config)


def _read_config(name: str) -> dict[str, Any]:
    """A configuration file, or a preset of the package by its name."""
    path = Path(name) if Path(name).is_file() else preset_folder() / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in preset_folder().glob("*.yaml")))
        raise UsageError(f"--config: no file {name!r}, and no preset of that name; presets are {known}")
    try:
        settings = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except Exception as error:  # whatever the YAML parser raises
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
    """A part's name as settings: `--data train.jsonl` is `--data files --data.path train.jsonl`.

    A file or folder means `files`, `organisation/name` means `hub`; all else is a short name or a class path.
    """
    if group != "data" or name in names(SWAPPABLE[group].registry):
        return {"name": name}
    if looks_like_a_file(name):
        return {"name": "files", "path": name}
    if hub := parse_hub_name(name, "train"):
        given = {"dataset": hub.dataset, "config": hub.config, "split": hub.split, "revision": hub.revision}
        return {"name": "hub", **{field: value for field, value in given.items() if value is not None}}
    return {"name": name}


def _choose(group: str, named: str | None, configs: Sequence[Mapping[str, Any]]) -> Choice:
    """The command line's name for a part, else the last configuration file's, else the default."""
    swappable = SWAPPABLE[group]
    name = named or _named_in(configs, group) or swappable.default
    if name == NONE and group == "consolidate":
        return Choice(name, None)
    try:
        return Choice(name, find_class(swappable.registry, name, swappable.base))
    except ValueError as error:
        raise UsageError(f"--{group}: {error}") from error


def _named_in(configs: Sequence[Mapping[str, Any]], group: str) -> str | None:
    """The name that the last configuration file to name a part gives it."""
    names_given = [config[group]["name"] for config in configs if "name" in (config.get(group) or {})]
    return names_given[-1] if names_given else None


def _merge(configs: Sequence[Mapping[str, Any]], choices: Mapping[str, Choice]) -> dict[str, Any]:
    """The configuration files as one, the later ones winning key by key.

    What a file says of a part counts where it is the part that was chosen; else only the fields that the chosen one
    has, too: `--config countdown --algo grpo` keeps the preset's learning rate and forgets DAPO's own fields.
    """
    merged: dict[str, Any] = {}
    for config in configs:
        for group, values in config.items():
            if not isinstance(values, dict):
                merged[group] = values
                continue
            choice = choices.get(group)
            if choice is not None and values.get("name", choice.name) != choice.name:
                accepted = _fields(choice.cls)
                values = {key: value for key, value in values.items() if key in accepted}
            merged.setdefault(group, {}).update({key: value for key, value in values.items() if key != "name"})
    return merged


def _fields(cls: type | None) -> set[str]:
    """The names of a class's arguments, inherited ones included."""
    if cls is None:
        return set()
    return {name.partition(".")[2] for name in ArgumentParser(exit_on_error=False).add_class_arguments(cls, "part")}
