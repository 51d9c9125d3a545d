"""Random changes of files, seeded by their number, and what a reader makes of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random


def changes(few: int) -> range:
    """The numbers of the changes that a test tries: a few, or RLOOP_FUZZ, from RLOOP_FUZZ_SEED on."""
    first = int(os.environ.get("RLOOP_FUZZ_SEED", 0))
    return range(first, first + int(os.environ.get("RLOOP_FUZZ", few)))


def changed_bytes(content: bytes, random: Random, inserts: tuple[bytes, ...] = (b"\x00", b"\xff\xfe")) -> bytes:
    """One to four changes: bits flipped, bytes at the end replaced, parts removed, repeated or inserted."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(changed)) if changed else 0
        match random.choice(["flip", "end", "cut", "truncate", "repeat", "insert"]):
            case "flip" if changed:
                changed[start] ^= 1 << random.randrange(8)
            case "end" if changed:  # where some formats keep lengths and types
                changed[-random.randint(1, min(len(changed), 3000))] = random.randrange(256)
            case "cut":
                del changed[start : start + random.randint(1, 100)]
            case "truncate":
                del changed[start:]
            case "repeat":
                changed[start:start] = changed[start : start + random.randint(1, 200)]
            case _:
                changed[start:start] = random.choice([*inserts, random.randbytes(random.randint(1, 100))])
    return bytes(changed)


def fault_of(read: Callable[[], object]) -> Exception | None:
    """The error that a reader raises, if it does."""
    try:
        read()
    except Exception as error:
        return error
    return None
