"""Settings that a parser refuses: all that is wrong with them at once, in short messages.

    settings, wrong = parse(parser, configuration, flags)

A parser stops at the first thing that it can't take. So where it does, each setting is put to it by itself, in the
order given, together with the flags before it that it took; what is left of the settings is then parsed as a whole.
"""

from __future__ import annotations

import difflib
import json
from argparse import Action, ArgumentError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace

from rloop_lightning.system.fields import in_words
from rloop_lightning.system.terminal import one_line

# What the parser says last, once it has taken every single setting.
_REQUIRED = "the following arguments are required: "

_SHOWS = ("help", "h", "print_config", "print_shtab")  # flags that end the program instead of setting anything


def nowhere(key: str) -> str:
    """Where a setting stands, if no configuration file is involved."""
    return ""


@dataclass(frozen=True)
class Context:
    """What a diagnosis may know beyond the parser.

    Args:
        file_of: the configuration file that a key stands in, for messages.
        reserved: options that others would take for ours, and what to say of them.
        undecided: groups whose fields are unknown, as the class that they belong to is; nothing is said of these.
    """

    file_of: Callable[[str], str] = nowhere
    reserved: Mapping[str, str] = field(default_factory=dict)
    undecided: frozenset[str] = frozenset()


def parse(
    parser: ArgumentParser, configuration: Mapping[str, Any], flags: Sequence[str], context: Context | None = None
) -> tuple[Namespace | None, list[str]]:
    """The settings, less those that can't be taken, and what is wrong with these.

    Args:
        parser: built with `exit_on_error=False`, with an option `--config` if there is a configuration.
        configuration: settings of files, by group.
        flags: the command line, `--flag=value` each.

    Returns:
        None for the settings if one is missing that must be given.
    """
    try:
        _check_groups(parser, configuration)
        return parser.parse_args([*_as_flag(configuration), *flags]), []
    except ArgumentError:
        return _Diagnosis(parser, context or Context()).parse(configuration, flags)


class _Diagnosis:
    def __init__(self, parser: ArgumentParser, context: Context) -> None:
        self.parser = parser
        self.context = context
        self.actions = {action.dest: action for action in parser._actions}
        self.known = [key for key in self.actions if key not in _SHOWS]

    def parse(self, configuration: Mapping[str, Any], flags: Sequence[str]) -> tuple[Namespace | None, list[str]]:
        wrong: list[str] = []
        taken = Namespace()
        for key, value in self._leaves(configuration):
            if self._undecided(key):
                continue
            fault = self._fault(key, value, _as_flag({key: value}))
            if fault:
                wrong.append(f"--config {self.context.file_of(key)}: {key}: {fault}")
            else:
                taken[key] = value
        kept: list[str] = []
        for flag in flags:
            name, equals, value = flag.partition("=")
            key = name.removeprefix("--").removesuffix("+")
            if key in _SHOWS or self._undecided(key):
                continue
            if not name.startswith("--"):
                wrong.append(f"{one_line(flag)!r} is no option; options begin with --")
                continue
            fault = self._fault(key, value if equals else None, [*kept, flag])
            if fault:
                wrong.append(f"{one_line(name)}: {fault}")
            else:
                kept.append(flag)
        try:
            return self.parser.parse_args([*_as_flag(taken.as_dict()), *kept]), wrong
        except ArgumentError as error:
            return None, [*wrong, *self._missing(str(error))]

    def _leaves(self, settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Settings by their dotted keys, down to what is one option of the parser or none at all."""
        for name, value in settings.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict) and (key in (self.parser.groups or {}) or key not in self.actions):
                yield from self._leaves(value, f"{key}.")
            else:
                yield key, value

    def _undecided(self, key: str) -> bool:
        group, dot, field = key.partition(".")
        return bool(dot) and field != "name" and group in self.context.undecided

    def _fault(self, key: str, value: Any, arguments: list[str]) -> str:
        """What is wrong with a setting; empty if nothing is."""
        if key in self.context.reserved:
            return self.context.reserved[key]
        action = self._action(key)
        if action is None:
            near = _nearest(key, self.known)
            return f"no such option{f'; did you mean --{near}?' if near else '; --help lists all'}"
        if value is None and action.nargs != 0 and arguments[-1].startswith(f"--{key}"):
            return "needs a value"
        if key in (self.parser.groups or {}):
            return f"expected a group of settings such as {key}.{_first_field(key, self.known)}, got {_shown(value)}"
        try:
            self.parser.parse_args(arguments, defaults=False)
        except ArgumentError as error:
            complaint = str(error)
            return "" if complaint.startswith(_REQUIRED) else _type_fault(action, value, complaint)
        return ""

    def _action(self, key: str) -> Action | None:
        """The option of a key, or the one whose value the key goes inside, as --trainer.callbacks.patience does."""
        while key not in self.actions:
            key, dot, _ = key.rpartition(".")
            if not dot or key in (self.parser.groups or {}):
                return None
        return self.actions[key]

    def _missing(self, complaint: str) -> list[str]:
        if not complaint.startswith(_REQUIRED):
            return [one_line(complaint, limit=300)]
        keys = complaint.removeprefix(_REQUIRED).split(", ")
        return [f"--{key} must be given" for key in keys if not self._undecided(key)]


def _check_groups(parser: ArgumentParser, configuration: Mapping[str, Any]) -> None:
    """The parser takes a group that holds no settings, and falls over it later."""
    for key, value in configuration.items():
        if key in (parser.groups or {}) and not isinstance(value, dict):
            raise ArgumentError(None, f"{key}: expected a group of settings")


def _type_fault(action: Action, value: Any, complaint: str) -> str:
    """What was expected and what was got; of a value that names a class, what the parser says of it."""
    if action.nargs == 0:
        return f"takes no value, got {_shown(value)}"
    hint = getattr(action, "_typehint", action.type)
    reasons = [line.strip(" -") for line in complaint.splitlines()[1:] if line.strip().startswith("- ")]
    if not _is_plain(hint) and reasons:
        return f"can't take {_shown(value)}: {one_line(reasons[0], limit=200)}"
    return f"expected {in_words(hint)}, got {_shown(value)}"


def _is_plain(hint: Any) -> bool:
    """Whether a type is made of numbers, texts and the like alone."""
    if get_origin(hint) is Literal or hint is Ellipsis:
        return True
    inner = get_args(hint)
    if inner:
        return all(map(_is_plain, inner))
    return isinstance(hint, type) and issubclass(hint, int | float | str | type(None) | list | dict | tuple)


def _nearest(key: str, known: Iterable[str]) -> str:
    """The known key that was meant; empty if none is like it."""
    known = list(known)
    same_field = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    near = (
        difflib.get_close_matches(key, known, n=1, cutoff=0.75) or same_field or difflib.get_close_matches(key, known)
    )
    return near[0] if near else ""


def _first_field(group: str, known: Sequence[str]) -> str:
    fields = (key.partition(".")[2] for key in known if key.startswith(f"{group}."))
    return next((field for field in fields if not field.endswith(".help")), "FIELD")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and is_number(value) else one_line(repr(value), limit=80)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_flag(configuration: Mapping[str, Any]) -> list[str]:
    return ["--config", json.dumps(configuration)] if configuration else []
