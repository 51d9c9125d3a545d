"""Reports all settings that a parser refuses at once, in short messages.

    settings, wrong = parse(parser, configuration, flags)

A parser stops at the first error. When it does, each setting is parsed by itself, in the given order, together with the
accepted flags before it. The accepted settings are then parsed as a whole.
"""

from __future__ import annotations

import difflib
import json
import re
from argparse import Action, ArgumentError
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace

from rloop_lightning.system.fields import in_words
from rloop_lightning.system.terminal import one_line

# The parser's last error, after it has accepted every single setting.
_REQUIRED = "the following arguments are required: "


def nowhere(key: str) -> str:
    """The configuration file of a setting, if there are no configuration files."""
    return ""


def no_class(key: str) -> Sequence[str]:
    """The other classes with an option, if no part's class is chosen."""
    return ()


def no_option(word: str) -> str:
    """The message for a word that does not begin with --."""
    return f"{one_line(word)!r} is not an option; options begin with --"


@dataclass(frozen=True)
class Context:
    """What a diagnosis knows beyond the parser.

    Args:
        file_of: maps a key to its configuration file, for messages.
        reserved: options that users may not set, with their messages.
        undecided: groups whose class, and so their fields, are unknown; they get no messages.
        stray: the message for a word that is no option.
        full_help: the option that lists all options.
        others_with: for an option that does not exist, the short names of other classes of the part that have it.
    """

    file_of: Callable[[str], str] = nowhere
    reserved: Mapping[str, str] = field(default_factory=dict)
    undecided: frozenset[str] = frozenset()
    stray: Callable[[str], str] = no_option
    full_help: str = "--help"
    others_with: Callable[[str], Sequence[str]] = no_class


def parse(
    parser: ArgumentParser, configuration: Mapping[str, Any], flags: Sequence[str], context: Context | None = None
) -> tuple[Namespace | None, list[str]]:
    """The accepted settings, and one message for each refused setting.

    Args:
        parser: built with `exit_on_error=False`, with an option `--config` if there is a configuration.
        configuration: settings from files, by group.
        flags: the command line, `--flag=value` each.

    Returns:
        None for the settings if a required one is missing.
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
        self.known = list(self.actions)

    def parse(self, configuration: Mapping[str, Any], flags: Sequence[str]) -> tuple[Namespace | None, list[str]]:
        wrong: list[str] = []
        refused: set[str] = set()
        taken = Namespace()
        for key, value in self._leaves(configuration):
            if self._undecided(key):
                continue
            fault = self._fault(key, value, _as_flag({key: value}))
            if fault:
                wrong.append(
                    f"--config {one_line(self.context.file_of(key), limit=200)}: {one_line(key, limit=100)}: {fault}"
                )
                refused.add(key)
            else:
                taken[key] = value
        kept: list[str] = []
        for flag in chain.from_iterable(map(self._spread, flags)):
            name, equals, value = flag.partition("=")
            key = name.removeprefix("--").removesuffix("+")
            if self._undecided(key):
                continue
            if not name.startswith("--"):
                wrong.append(self.context.stray(flag))
                continue
            fault = self._fault(key, value if equals else None, [*kept, flag])
            if fault:
                wrong.append(f"{one_line(name)}: {fault}")
                refused.add(key)
            else:
                kept.append(flag)
        try:
            return self.parser.parse_args([*_as_flag(taken.as_dict()), *kept]), wrong
        except ArgumentError as error:
            return None, [*wrong, *self._missing(str(error), refused)]

    def _spread(self, flag: str) -> list[str]:
        """The flags of the options in a group that is given as one JSON object, as in --policy.lora={"rank": 8}."""
        key, _, value = flag.removeprefix("--").partition("=")
        if key not in (self.parser.groups or {}) or not value.startswith("{"):
            return [flag]
        try:
            settings = json.loads(value)
        except ValueError:
            return [flag]
        return [
            f"--{name}={item if isinstance(item, str) else json.dumps(item)}"
            for name, item in self._leaves(settings, f"{key}.")
        ]

    def _leaves(self, settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Flatten settings to dotted keys, down to keys that are one option of the parser, or unknown to it."""
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
        """The error of a setting; empty if it is accepted."""
        if key in self.context.reserved:
            return self.context.reserved[key]
        action = self._action(key)
        if action is None:
            if others := self.context.others_with(key):
                group = key.partition(".")[0]
                return f"the chosen --{group} has no such option; take one that has it: --{group} {' or '.join(others)}"
            near = _nearest(key, self.known)
            return f"no such option{f'; did you mean --{near}?' if near else f'; {self.context.full_help} lists all'}"
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
        """The option of a key, or the option whose value contains the key, as in --trainer.callbacks.patience."""
        while key not in self.actions:
            key, dot, _ = key.rpartition(".")
            if not dot or key in (self.parser.groups or {}):
                return None
        return self.actions[key]

    def _missing(self, complaint: str, refused: Container[str]) -> list[str]:
        if not complaint.startswith(_REQUIRED):
            return [one_line(complaint, limit=300)]
        keys = complaint.removeprefix(_REQUIRED).split(", ")
        return [f"--{key} must be given" for key in keys if not self._undecided(key) and key not in refused]


def _check_groups(parser: ArgumentParser, configuration: Mapping[str, Any]) -> None:
    """Check that groups are mappings: the parser accepts other values, and fails later."""
    for key, value in configuration.items():
        if key in (parser.groups or {}) and not isinstance(value, dict):
            raise ArgumentError(None, f"{key}: expected a group of settings")


def _type_fault(action: Action, value: Any, complaint: str) -> str:
    """The expected type and the given value; for a value that names a class, the parser's own reason."""
    if action.nargs == 0:
        return f"takes no value, got {_shown(value)}"
    hint = getattr(action, "_typehint", action.type)
    if not _is_plain(hint) and (reason := reason_in(complaint)):
        if reason.startswith("Expected a dot import path"):
            return f"no class of the name {_shown(value)} is known; give its import path, package.module.Class"
        return f"can't take {_shown(value)}: {one_line(reason, limit=200)}"
    return f"expected {in_words(hint)}, got {_shown(value)}"


def reason_in(complaint: str) -> str:
    """The parser's reason for refusing a class."""
    _, _, reasons = complaint.partition("Errors:\n")
    if not reasons:
        return _joined(complaint.partition("\n")[2])
    _, *alternatives = map(_joined, re.split(r"^ *- ", reasons, flags=re.MULTILINE))
    # Of a type's alternatives, the one that was meant fails for another reason than its kind.
    return next((reason for reason in alternatives if not reason.startswith("Expected a <class")), alternatives[0])


def _joined(text: str) -> str:
    return " ".join(map(str.strip, text.splitlines()))


def _is_plain(hint: Any) -> bool:
    """Whether a type consists only of numbers, strings and their containers, or of anything in these."""
    if get_origin(hint) is Literal or hint is Ellipsis or hint is Any:
        return True
    inner = get_args(hint)
    if inner:
        return all(map(_is_plain, inner))
    return isinstance(hint, type) and issubclass(hint, int | float | str | type(None) | list | dict | tuple)


def _nearest(key: str, known: Iterable[str]) -> str:
    """The known key that is most similar; empty if none is."""
    known = list(known)
    same_field = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    near = (
        difflib.get_close_matches(key, known, n=1, cutoff=0.75) or same_field or difflib.get_close_matches(key, known)
    )
    return near[0] if near else ""


def _first_field(group: str, known: Sequence[str]) -> str:
    fields = (key.removeprefix(f"{group}.") for key in known if key.startswith(f"{group}."))
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
