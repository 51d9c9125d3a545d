"""What `--help_all`, `--print_config` and `--print_shtab` print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from rloop_lightning.cli.options import SHOWING
from rloop_lightning.cli.swappable import SWAPPABLE
from rloop_lightning.system.terminal import printable

CONFIG_FLAGS = ("skip_default", "skip_null", "skip_unset", "comments")
SHELLS = ("bash", "zsh", "tcsh")

_NOT_IN_A_FILE = ("resume", "trust", "debug")
_WIDTH = 100


def config_faults(flags: str) -> list[str]:
    """What is wrong with FLAGS of `--print_config=FLAGS`."""
    unknown = [flag for flag in flags.split(",") if flag and flag not in CONFIG_FLAGS]
    return [f"--print_config: no flag {flag!r}; take {', '.join(CONFIG_FLAGS)}" for flag in unknown]


def config_text(parser: ArgumentParser, config: Namespace, flags: str) -> str:
    """The settings as YAML, which `--config` reads to the same settings.

    Args:
        parser: the parser that accepted them.
        flags: `skip_default` leaves out what has its default, but for the names of parts; `skip_null` (or `skip_unset`)
            leaves out what is null by default and is null; `comments` puts each field's help above it.
    """
    chosen = set(flags.split(","))
    settings = _plain(parser, config)
    defaults = _plain(parser, parser.get_defaults(skip_validation=True))
    if chosen & {"skip_default", "skip_null", "skip_unset"}:
        settings = _changed(settings, defaults, nulls_only="skip_default" not in chosen)
    help_of = {action.dest: action.help or "" for action in parser._actions} if "comments" in chosen else {}
    return "".join(_lines(settings, help_of))


def full_help(parser: ArgumentParser) -> str:
    """The text of `--help_all`."""
    return f"{parser.format_help()}\nhelp:\n" + "\n".join(f"  {flag}: {text}" for flag, text in SHOWING.items())


def completion(parser: ArgumentParser, shell: str) -> str:
    """The completion script of `--print_shtab SHELL`.

    Raises:
        ValueError: the shell is unknown, or the package shtab is not installed.
    """
    if shell not in SHELLS:
        raise ValueError(f"--print_shtab: expected {', '.join(SHELLS)}, got {shell!r}")
    if find_spec("shtab") is None:
        raise ValueError("--print_shtab needs the package shtab: pip install shtab")
    return str(parser.get_completion_script(f"shtab-{shell}"))


def _plain(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """The settings as YAML holds them, with the name of a part first."""
    settings = yaml.safe_load(parser.dump(config, skip_unset=False, skip_validation=True))
    settings = {key: value for key, value in settings.items() if key not in _NOT_IN_A_FILE}
    for group in SWAPPABLE:
        settings[group] = {"name": settings[group].pop("name"), **settings[group]}
    return settings


def _changed(settings: Mapping[str, Any], defaults: Mapping[str, Any], *, nulls_only: bool) -> dict[str, Any]:
    """The settings that differ from the defaults, and the names of parts; other defaults too, unless they are null."""

    def kept(value: Any, default: Any) -> bool:
        return bool(value != default or (nulls_only and value is not None))

    found: dict[str, Any] = {}
    for key, value in settings.items():
        default = defaults.get(key)
        if not isinstance(value, dict):
            found |= {key: value} if kept(value, default) else {}
            continue
        fields = {
            name: inner for name, inner in value.items() if name == "name" or kept(inner, (default or {}).get(name))
        }
        found |= {key: fields} if fields else {}
    return found


def _lines(settings: Mapping[str, Any], help_of: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    indent = "  " if prefix else ""
    for key, value in settings.items():
        comment = " ".join(help_of.get(f"{prefix}{key}", "").split())
        yield from (f"{indent}# {line}\n" for line in textwrap.wrap(comment, _WIDTH))
        if isinstance(value, dict) and value and not prefix:
            yield f"{key}:\n"
            yield from _lines(value, help_of, f"{key}.")
        else:
            text = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=_WIDTH)
            if printable(text) != text:  # such as marks that turn the direction of the text around
                text = yaml.safe_dump({key: value}, sort_keys=False, width=_WIDTH)
            yield textwrap.indent(text, indent)
