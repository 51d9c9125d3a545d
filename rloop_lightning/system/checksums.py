"""Checksums of a folder's files, in its file `_SHA256SUMS`. `sha256sum -c _SHA256SUMS` checks them too.

    add_checksum(pool / "step-000012.parquet")      # appends a line
    write_checksums(policy_folder)                  # for all its files
    damaged_files(pool)  # -> {"step-000003.parquet": "its content has changed"}

The name begins with an underscore, so that readers of a folder of Parquet files skip it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from rloop_lightning.system.files import append, write_text

SUMS = "_SHA256SUMS"
_DIGEST_CHARACTERS = 64


def add_checksum(path: Path) -> None:
    """Add the checksum of a file to its folder's checksums. The last one of a name counts."""
    sums = path.parent / SUMS
    append(sums, ("\n" * _is_cut(sums) + _line(path.name, digest(path))).encode())


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files that are now in a folder and its subfolders."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = sorted(set(files) - {SUMS})
    write_text(folder / SUMS, "".join(_line(name, digest(folder / name)) for name in names))


def keep_checksums(folder: Path, names: Iterable[str]) -> None:
    """Remove all checksums but those of the named files, and any line that a kill left half-written."""
    listed, kept = checksums(folder), sorted(names)
    if (folder / SUMS).exists():
        write_text(folder / SUMS, "".join(_line(name, listed[name]) for name in kept if name in listed))


def checksums(folder: Path) -> dict[str, str]:
    """Digests by file name. Lines that are not checksums are skipped."""
    if not (folder / SUMS).is_file():
        return {}
    lines = (line.split("  ", 1) for line in (folder / SUMS).read_bytes().decode(errors="replace").splitlines())
    return {line[1]: line[0] for line in lines if len(line) == 2 and len(line[0]) == _DIGEST_CHARACTERS}


def damaged_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Damaged files and their faults: missing, changed, or without a checksum.

    Args:
        folder: where the files are; if it does not exist, its `_SHA256SUMS` counts as missing.
        names: the files to check; default: those with a checksum.
    """
    listed = checksums(folder)
    if names is None and not listed:
        return {SUMS: "is missing or empty"}
    damage = {}
    for name in listed if names is None else names:
        if not (folder / name).is_file():
            damage[name] = "is missing"
        elif name not in listed:
            damage[name] = f"has no checksum in {SUMS}"
        elif digest(folder / name) != listed[name]:
            damage[name] = "is damaged (its checksum differs)"
    return damage


def _is_cut(sums: Path) -> bool:
    """Whether a kill left a half-written line. Reads the last byte alone: a pool adds a line for each of its shards."""
    if not sums.exists() or not sums.stat().st_size:
        return False
    with sums.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _line(name: str, digest: str) -> str:
    return f"{digest}  {name}\n"


def digest(path: Path) -> str:
    """The SHA-256 checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
