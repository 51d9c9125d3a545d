"""Damage of the files of a run folder: which kinds of files there are, and what is done to one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePath
from random import Random

KINDS = {
    "the state": ("state.json", "state.previous.json"),
    "the state of a phase": ("round-*/*/state.json",),
    "the settings": ("config.yaml",),
    "the record of the problems": ("problems.parquet",),
    "metrics.csv": ("metrics.csv",),
    "the metrics of a phase": ("round-*/metrics/*", "round-*/*/metrics*", "metrics/*"),
    "a shard of the pool": ("round-*/pool/*.parquet",),
    "checksums": ("**/_SHA256SUMS",),
    "an expert set": ("round-*/expert.parquet",),
    "a checkpoint": ("round-*/*/checkpoints/*",),
    "a policy": ("round-*/policy/*", "round-*/explore/policy/*"),
    "an evaluation's record": ("round-*/evaluations/*",),
    "the final policy": ("final/*",),
    "loggers.json": ("loggers.json",),
    "the results table": ("results.md",),
    "the report": ("report.html",),
    "a plot": ("plots/*",),
    "TensorBoard's log": ("tensorboard/**",),
    "the lock": ("run.lock",),
}
UNREAD = {"the report", "a plot", "TensorBoard's log", "the lock"}
"""Kinds that neither a resume nor a report reads."""


def files_by_kind(out: Path) -> dict[str, list[Path]]:
    """The files of a run folder, relative to it, by their kind; a file that no pattern fits is a kind of its own."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()):
        kinds.setdefault(kind_of(path), []).append(path)
    return kinds


def kind_of(path: PurePath) -> str:
    for kind, patterns in KINDS.items():
        if any(_fits(path, pattern) for pattern in patterns):
            return kind
    return str(path)


def _fits(path: PurePath, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return path.name == pattern.removeprefix("**/")
    if pattern.endswith("/**"):
        return path.parts[0] == pattern.removesuffix("/**")
    return len(path.parts) == pattern.count("/") + 1 and path.match(pattern)


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))]


def _zero(content: bytes, random: Random) -> bytes:
    return bytes(len(content))


def _insert_nul(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content))
    return content[:start] + bytes(random.randint(1, 64)) + content[start:]


def _append(content: bytes, random: Random) -> bytes:
    return content + random.randbytes(random.randint(1, 64))


DEEDS: dict[str, Callable[[bytes, Random], bytes | None]] = {
    "a bit flipped": _flip,
    "cut": _cut,
    "filled with zeros": _zero,
    "NUL bytes inside": _insert_nul,
    "more bytes at its end": _append,
    "deleted": lambda content, random: None,
}


def damage(path: Path, random: Random) -> tuple[str, bytes | None]:
    """Damage a file at random. Returns what was done, and the content that it left; None if the file is gone."""
    content = path.read_bytes()
    while True:
        deed = random.choice(list(DEEDS))
        after = DEEDS[deed](content, random) if content or deed in ("deleted", "more bytes at its end") else content
        if after != content:
            break
    if after is None:
        path.unlink()
    else:
        path.write_bytes(after)
    return deed, after
