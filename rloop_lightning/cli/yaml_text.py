"""Reads YAML of unknown origin in bounded time and memory.

settings = load_settings(text)

The text's events are counted before values are made of them. Aliases count as what they stand for, since whoever walks
through the values visits it again for each alias.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from jsonargparse import get_loader

from rloop_lightning.system.terminal import one_line

MOST_BYTES = 2**20
"""Largest settings file. One with every option of every part has 20 kB."""
MOST_DEPTH = 50
"""Deepest nesting. Trainer callbacks with arguments of their own reach 7."""
MOST_VALUES = 20_000
"""Most values, with aliases replaced by what they stand for. A file with every option has 300."""
MOST_DIGITS = 100
"""Longest number. Python refuses to print integers of more than 4,300 digits, and reads base 60 in quadratic time."""
MOST_DIGITS_IN_A_TEXT = 1000
"""The same for a text in quotes, such as a checksum."""

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NUMBER = re.compile(r"[-+]?[.\d]\S*")


class YAMLFault(ValueError):
    """A text that is not YAML, or exceeds a limit. The message names the line."""


def load_yaml(text: str) -> Any:
    """The value of a YAML text, as the parser of the command line reads it: `1e-5` is a number.

    Raises:
        YAMLFault: it is not valid, or too large.
    """
    try:
        check_limits(text)
        return get_loader("yaml")(text)
    except YAMLFault:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        raise YAMLFault(f"not valid YAML: {one_line(' '.join(str(error).split()), limit=300)}") from error


def load_settings(text: str) -> Any:
    """The same for a settings file, in values that JSON has too, with every key a text.

    Raises:
        YAMLFault: it is not valid or too large, or holds other values.
    """
    return _plain(load_yaml(text), "")


def repeated_keys(text: str) -> Iterator[tuple[str, int]]:
    """Keys that a mapping holds twice, with the line of the second; YAML would silently take the last one.

    Args:
        text: YAML that `load_yaml` accepts.
    """
    yield from _repeated(yaml.compose(text, Loader=_Loader), "")


def check_limits(text: str, *, most_digits: int = MOST_DIGITS) -> None:
    """Refuse a text that takes long to read.

    Args:
        text: YAML.
        most_digits: of a number.

    Raises:
        YAMLFault: a limit is exceeded.
        yaml.YAMLError: it is not YAML.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # anchor, number of values so far
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        size = 0
        if isinstance(event, yaml.AliasEvent) and event.anchor:
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise YAMLFault(f"line {line}: *{one_line(event.anchor)} contains itself")
            size = sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(event, line, most_digits)
            size = 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MOST_DEPTH:
                raise YAMLFault(f"line {line}: nested deeper than {MOST_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            if anchor:
                sizes[anchor] = size
        anchor, before = open_nodes[-1]
        open_nodes[-1] = (anchor, before + size)
        if before + size > MOST_VALUES:
            raise YAMLFault(f"line {line}: more than {MOST_VALUES:,} values, aliases counted as what they stand for")


def _check_scalar(event: yaml.ScalarEvent, line: int, most_digits: int) -> None:
    if len(event.value) <= most_digits or not (event.implicit[0] or event.tag):
        return
    if event.tag not in (None, "!", "tag:yaml.org,2002:str") or _NUMBER.fullmatch(event.value):
        raise YAMLFault(
            f"line {line}: a number of {len(event.value):,} characters, at most {most_digits} are read; quote a text"
        )


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(inner, f"{where}{key}.") for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, f"{where}{number}.") for number, inner in enumerate(value)]
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        _check_text(value, where)
        return value
    kind = "a date" if isinstance(value, datetime.date) else f"a {type(value).__name__}"
    raise YAMLFault(
        f"{one_line(where.rstrip('.'), limit=200)}: expected text, a number, a list or a mapping, got {kind}"
    )


def _check_text(text: str, where: str) -> None:
    """Refuse a text that takes long to read as YAML, as the parser does where a setting may be a mapping."""
    try:
        check_limits(text, most_digits=MOST_DIGITS_IN_A_TEXT)
    except YAMLFault as fault:
        place = one_line(where.rstrip("."), limit=200)
        raise YAMLFault(f"{place}: a text of {str(fault).partition(': ')[2]}") from fault
    except yaml.YAMLError:
        return


def _key(key: Any, where: str) -> str:
    if key is None or isinstance(key, str | int | float):
        return key if isinstance(key, str) else json.dumps(key)
    place = one_line(where.rstrip("."), limit=200) or "the file"
    raise YAMLFault(f"{place}: a key must be text, got {one_line(repr(key))}")


def _repeated(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        name = f"{prefix}{key.value if isinstance(key, yaml.ScalarNode) else '...'}"
        if name in seen:
            yield name, key.start_mark.line + 1
        seen.add(name)
        yield from _repeated(value, f"{name}.")
