"""The parts that a command's settings describe: their options, their arguments, and the objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from rloop_lightning.cli.arguments import Choice
from rloop_lightning.cli.swappable import SWAPPABLE
from rloop_lightning.system.fields import plain
from rloop_lightning.system.terminal import one_line, printable


def add_swappable(parser: ArgumentParser, group: str, choice: Choice) -> None:
    """Add `--GROUP NAME` and the fields of the chosen class."""
    swappable = SWAPPABLE[group]
    what = f"{swappable.help} (default: {swappable.default})"
    if choice.cls is not None:
        parser.add_class_arguments(choice.cls, group, instantiate=False)
        for action in parser._actions:
            if f"--{group}" in action.option_strings:  # a class without arguments has none
                action.metavar, action.help = "NAME", what
    parser.add_argument(f"--{group}.name", type=str, default=choice.name, help=what, metavar="NAME")


def arguments_of(parser: ArgumentParser, config: Namespace, group: str) -> dict[str, Any]:
    """The arguments of a group's class, with new instances of arguments that are objects themselves."""
    # With groups, the parser would instantiate the classes of all other groups as well, without arguments.
    settings = Namespace({group: config[group].clone()})
    found = vars(parser.instantiate(settings, instantiate_groups=False)[group])
    found.pop("name", None)
    return plain({name: value.as_dict() if isinstance(value, Namespace) else value for name, value in found.items()})


def constructed(group: str, cls: Any, arguments: Mapping[str, Any], choice: Choice | None, wrong: list[str]) -> Any:
    """A part; None, with the errors in `wrong`, if it can't be made. A dataclass in its class is a group inside of it.

    Args:
        group: its group.
        cls: its class.
        arguments: of the class.
        choice: the user's choice of the class; None if the group has one class only.
        wrong: takes the errors, one message each.
    """
    try:
        hints = get_type_hints(cls) if is_dataclass(cls) else {}
        inner = {name: hints[name](**arguments[name]) for name in arguments if is_dataclass(hints.get(name))}
        return cls(**{**arguments, **inner})
    except ValueError as error:
        wrong += printable(str(error) or f"--{group}: {type(error).__name__}").splitlines()
    except (Exception, SystemExit) as error:
        if choice is None:
            raise
        told = one_line(str(error), limit=300)  # of a part that isn't ours, which may raise anything
        wrong.append(f"--{group} {choice.name}: {type(error).__name__}: {told}".removesuffix(": "))
    return None
