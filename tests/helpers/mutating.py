"""Seeded mutations of files, for the fuzz tests, and what a reader makes of them.

`RLOOP_FUZZ=N` makes N of each kind instead of some tens, and `RLOOP_FUZZ_SEED` is the first seed.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SECONDS = 60
"""A mutation that takes longer hangs. It is far more than any takes, so that a busy machine fails no test."""


def seeds(few: int) -> range:
    """The seeds that a test tries."""
    first = int(os.environ.get("RLOOP_FUZZ_SEED", 0))
    return range(first, first + int(os.environ.get("RLOOP_FUZZ", few)))


def fault_of(read: Callable[[], object]) -> Exception | None:
    """The error that a reader raises, if it does."""
    try:
        read()
    except Exception as error:
        return error
    return None


@contextmanager
def watchdog(what: str) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer than `SECONDS`."""

    def bark(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{what} takes longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutated_bytes(content: bytes, random: random.Random, words: tuple[bytes, ...] = ()) -> bytes:
    """One to four flips, cuts, repeats, insertions and swaps of pieces."""
    for _ in range(random.randint(1, 4)):
        start = random.randint(0, max(len(content) - 1, 0))
        end = min(len(content), start + random.choice((1, 1, 2, 8, 40)))
        piece = content[start:end]
        content = random.choice(_BYTE_MUTATIONS)(content, start, end, piece, random, words)
    return content


def _flip(content: bytes, start: int, end: int, piece: bytes, random: random.Random, words: Any) -> bytes:
    return content[:start] + bytes(byte ^ (1 << random.randrange(8)) for byte in piece) + content[end:]


def _cut(content: bytes, start: int, end: int, piece: bytes, random: random.Random, words: Any) -> bytes:
    return content[:start] if random.random() < 0.2 else content[:start] + content[end:]


def _repeat(content: bytes, start: int, end: int, piece: bytes, random: random.Random, words: Any) -> bytes:
    return content[:start] + piece * random.choice((2, 3, 50, 3000)) + content[end:]


def _insert(content: bytes, start: int, end: int, piece: bytes, random: random.Random, words: Any) -> bytes:
    word = random.choice(words) if words else bytes([random.randrange(256)])
    return content[:start] + word + content[start:]


def _replace(content: bytes, start: int, end: int, piece: bytes, random: random.Random, words: Any) -> bytes:
    word = random.choice(words) if words else b"\x00"
    return content[:start] + word + content[end:]


def _change_end(content: bytes, start: int, end: int, piece: bytes, random: random.Random, words: Any) -> bytes:
    """One byte near the end, where some formats keep lengths and types."""
    place = len(content) - random.randint(1, max(1, min(len(content), 3000)))
    return content[: max(place, 0)] + bytes([random.randrange(256)]) + content[place + 1 :]


_BYTE_MUTATIONS: tuple[Callable[..., bytes], ...] = (_flip, _cut, _repeat, _insert, _replace, _change_end)

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    10**90,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x1b[31m\u202e\r\x07",
    "1e5",
    "nan",
    "[1, [2]]",
    "{a: 1}",
    "{class_path: no.such.Thing}",
    "no.such.Thing",
    "*a",
    "../../x",
    "/dev/zero",
    "a" * 3000,
    [],
    {},
    [[[]]],
    {"a": {"b": 1}},
    [None],
    {"class_path": "os.system", "init_args": {"command": "false"}},
    {"class_path": None},
    {"init_args": 3},
    {"name": ["dapo"]},
)


def mutated_values(value: Any, random: random.Random) -> Any:
    """A copy in which one value, at any depth, is replaced, left out, doubled or renamed."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.15:
        return random.choice(VALUES)
    if isinstance(value, list):
        place = random.randrange(len(value))
        return [*value[:place], mutated_values(value[place], random), *value[place + random.randint(0, 1) :]]
    name = random.choice(list(value))
    kind = random.random()
    if kind < 0.08:
        return {other: inner for other, inner in value.items() if other != name}
    if kind < 0.16:
        return {(random.choice(VALUES[9:13]) if other == name else other): inner for other, inner in value.items()}
    if kind < 0.24:
        return {**value, random.choice(list(value)): value[name]}
    return {**value, name: mutated_values(value[name], random)}
