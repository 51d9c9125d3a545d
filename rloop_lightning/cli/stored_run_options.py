"""The options of the `rloop-data` commands that read a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

from jsonargparse import ArgumentParser, Namespace

from rloop_lightning.cli.arguments import UsageError, pairs
from rloop_lightning.cli.parse_errors import parse

Made = TypeVar("Made")


def run_and_options(
    arguments: Sequence[str], classes: Sequence[tuple[str | None, type]], usage: str, *, lists: Sequence[str] = ()
) -> tuple[str, Namespace]:
    """The run folder, and the options that fields of `classes` are.

    Args:
        arguments: the words after the command.
        classes: the classes whose fields are options, each with its group; None is no group.
        usage: of the command, for messages.
        lists: options that take several values, as in `0.05,0.1`.

    Raises:
        UsageError: names all errors.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"give the folder of a run: {usage}")
    run, *rest = arguments
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for group, cls in classes:
        parser.add_class_arguments(cls, group)
    settings, wrong = parse(parser, {}, [_flag(parser, flag, value, lists) for flag, value in pairs(rest)])
    if settings is None or wrong:
        raise UsageError("\n".join(wrong))
    return run, settings


def made(cls: type[Made], settings: Namespace) -> Made:
    """An object of a dataclass, from options that are its fields.

    Raises:
        UsageError: they contradict each other.
    """
    try:
        return cls(**{field.name: settings[field.name] for field in fields(cls)})  # type: ignore[arg-type] # a dataclass
    except ValueError as error:
        raise UsageError(str(error)) from error


def _flag(parser: ArgumentParser, flag: str, value: str | None, lists: Sequence[str]) -> str:
    action = next((action for action in parser._actions if flag in action.option_strings), None)
    if value is None:
        # An option that is on or off may stand alone.
        return f"{flag}=true" if action is not None and action.default is False else flag
    return f"{flag}={as_list(value) if flag in lists else value}"


def as_list(value: str) -> str:
    """The value of an option that takes a list, which may be written as `0.05,0.1`."""
    return value if value == "null" or value.startswith("[") else f"[{value}]"
