"""The command line of `rloop-eval` before parsing: policies, problem sets, and the settings files under the options.

    rloop-eval POLICY... --data SET... [--GROUP.FIELD VALUE ...]

The options are those of `rloop-fit`, as far as they matter to an evaluation. A run among the policies brings its
settings along, as `--config` would; options override them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rloop_lightning.cli.arguments import TRUST, Arguments, UsageError, pairs
from rloop_lightning.cli.config_files import placed
from rloop_lightning.cli.merge import fields_of
from rloop_lightning.cli.registry import find_class, names
from rloop_lightning.cli.swappable import SWAPPABLE
from rloop_lightning.cli.trust import chosen_paths, code_faults, strange_paths
from rloop_lightning.data.hub_rows import parse_hub_name
from rloop_lightning.data.rows import looks_like_a_file
from rloop_lightning.system.terminal import one_line

SETS_CLASS = "rloop_lightning.data.evaluation_sets.EvaluationSets"
"""The class of `--data SET ...`, if the sets are files or names on the hub."""

_OF_TRAINING = ("algo", "consolidate", "loop", "filter", "capture", "gradient", "hub", "plan")
_OF_RUNS = ("out", "restart_from", "dry_run", "debug")
_LEFT_OUT = (*_OF_TRAINING, *_OF_RUNS)
"""What an evaluation leaves out of a settings file."""

_SWAPPABLE = {group: part for group, part in SWAPPABLE.items() if group not in _OF_TRAINING}


@dataclass(frozen=True)
class StoredSettings:
    """Settings of an earlier run or evaluation, which may be somebody else's and name code.

    Args:
        folder: its folder.
        file: their file, for messages.
        settings: by group.
        option: the option that names the folder, for messages.
    """

    folder: Path
    file: str
    settings: Mapping[str, Any]
    option: str = ""


@dataclass
class Words:
    """The command line in three parts.

    Args:
        policies: the policies.
        sets: the words after `--data`.
        options: everything else, as flags.
    """

    policies: list[str] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, argv: Sequence[str]) -> Words:
        """Split a command line. Words after `--data` are sets; other words without an option are policies."""
        words = cls()
        place: list[str] | None = words.policies
        for flag, value in pairs(argv):
            if not flag.startswith("-"):
                place = words.policies if place is None else place
                place.append(flag if value is None else f"{flag}={value}")
            elif flag == "--data":
                place = words.sets
                words.sets += [] if value is None else [value]
            else:
                place = None
                words.options.append(flag if value is None else f"{flag}={value}")
        return words

    def value(self, *options: str) -> str | None:
        """The last value of an option, given by all its names; None if it is not there."""
        given = [flag.partition("=")[2] for flag in self.options if flag.partition("=")[0] in options]
        return given[-1] if given else None


class EvalArguments(Arguments):
    """The options and settings files of an evaluation; see `Arguments`.

    Args:
        words: the command line.
        stored: settings that the options override.

    Raises:
        UsageError: stored settings name code that the user neither chose nor trusts.
    """

    swappable = _SWAPPABLE
    preset = None

    def __init__(self, words: Words, stored: StoredSettings | None) -> None:
        self._stored = stored
        self._trusted = stored is not None and TRUST in words.options
        self.first_names = [] if stored is None else [stored.file]
        options = [flag for flag in words.options if not (flag == TRUST and self._trusted)]
        faults, data = _data_options(words)
        super().__init__([*data, *options])
        self.wrong += faults
        if self.shows is not None:
            self.wrong.append(f"{self.shows[0]}: no such option; rloop-eval --help lists all")
        if not words.sets and not any(flag.startswith("--data.sets") for flag in options) and self._data_missing():
            self.wrong.append("--data: give the problem sets: rloop-eval POLICY --data test.jsonl")

    def _data_missing(self) -> bool:
        return "data" not in self.configuration and "data" not in self._named

    def _read_config(self, name: str) -> dict[str, Any]:
        if self._stored is None or name != self._stored.file:
            return super()._read_config(name)
        faults: list[str] = []
        settings = placed(name, dict(self._stored.settings), faults)
        self._note(name, faults)
        return settings

    def _with_parts(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return super()._with_parts(name, _relevant(settings))

    def _refuse_strange_code(self, argv: Sequence[str], written: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        stored = self._stored
        if stored is None or self._trusted:
            return
        used = {group: self._used(group, values) for group, values in _relevant(stored.settings).items()}
        own = [settings for name, settings in written if name != stored.file]
        chosen = chosen_paths([value for _, value in pairs(argv) if value], own)
        if set(strange_paths(used).values()) <= chosen:
            return
        if faults := code_faults(stored.folder, stored.settings, chosen, option=stored.option, what="an evaluation"):
            raise UsageError("\n".join(faults))

    def _used(self, group: str, values: Any) -> Any:
        """The stored settings of a group, without those that another choice on the command line leaves out.

        Of parts of this package and of entry points alone: to know the fields of another class is to import it.
        """
        if group not in self.swappable or not isinstance(values, Mapping):
            return values
        part, chosen = self.swappable[group], self._named.get(group)
        if chosen in (None, values.get("name")) or not {chosen, values.get("name")} <= names(part.registry).keys():
            return values
        fields = fields_of(find_class(part.registry, str(chosen), part.base))
        return {name: value for name, value in values.items() if name in fields}


def _relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {group: values for group, values in settings.items() if group not in _LEFT_OUT}


def _data_options(words: Words) -> tuple[list[str], list[str]]:
    """Errors in the sets, and the options that stand for `--data SET ...`."""
    named = [one for one in words.sets if one in names("data") or not _is_place(one)]
    if words.sets and words.sets == named[:1]:
        return [], ["--data", named[0]]
    if not words.sets:
        given = any(flag.startswith("--data.sets") for flag in words.options)
        return [], ["--data", SETS_CLASS] if given else []
    wrong = [
        f"--data {one_line(name, limit=200)}: it is neither a file nor a data set on the hub, so give it alone"
        for name in named
    ]
    places = [one for one in words.sets if one not in named]
    # The sets of the data in a settings file are not these.
    return wrong, ["--data", SETS_CLASS, f"--data.sets={json.dumps(places)}", "--eval.sets=null"]


def _is_place(name: str) -> bool:
    """Whether a set is a file, a folder or a name on the hub, which may be missing."""
    return looks_like_a_file(name) or parse_hub_name(name, "test") is not None
