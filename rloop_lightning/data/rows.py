"""Rows of JSONL, JSON, CSV and Parquet files, each with its place in the file.

Rows are read one by one. A row that can't be read becomes a `BadRow` with its place and reason, so one pass finds all
faults of a file. The files are untrusted: text_rows.py and parquet_rows.py bound what one of them can take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rloop_lightning.data.parquet_rows import parquet_rows
from rloop_lightning.data.row import BadRow, Row
from rloop_lightning.data.text_rows import csv_rows, json_rows, jsonl_rows
from rloop_lightning.system.regular_files import exists, not_a_file
from rloop_lightning.system.store_urls import is_url
from rloop_lightning.system.terminal import one_line

__all__ = ["SUFFIXES", "BadRow", "Row", "files_of", "looks_like_a_file", "read_rows"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")

_MOST_BAD_ROWS = 1000
"""After so many bad rows a file is read no further. A file of another kind gives one for each of its lines."""


def looks_like_a_file(name: str) -> bool:
    """Whether a name on the command line means a file or folder, which may be missing or in a store."""
    rooted = name.startswith(("./", "../", "/", "~")) or name.endswith("/")
    return is_url(name) or rooted or Path(name).suffix.lower() in SUFFIXES or exists(Path(name))


def files_of(path: Path) -> list[Path]:
    """The files at a path: the file itself, or those in the folder, sorted by name.

    Raises:
        ValueError: there is no readable file; the message says what is expected.
    """
    known = ", ".join(SUFFIXES)
    shown = one_line(str(path), limit=200)
    kind = not_a_file(path)
    if kind == "a folder":
        try:
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        except OSError as error:
            raise ValueError(f"the folder {shown} can't be read: {error.strerror or error}") from error
        if not found:
            raise ValueError(f"the folder {shown} holds no file that ends in {known}")
        return found
    if not exists(path):
        raise ValueError(f"no such file or folder: {shown}")
    if kind:
        raise ValueError(f"{shown} is {kind}, not a file; save the problems in a file")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{shown}: can't tell the format from the name; it must end in {known}")
    return [path]


def read_rows(file: Path) -> Iterator[Row | BadRow]:
    """The rows of a file, in order."""
    bad = 0
    try:
        for row in _READERS[file.suffix.lower()](file):
            yield row
            bad += isinstance(row, BadRow)
            if bad == _MOST_BAD_ROWS:
                yield BadRow(file.name, f"it is read no further, after {_MOST_BAD_ROWS:,} rows that can't be read")
                return
    except OSError as error:
        yield BadRow(file.name, f"can't be read: {error.strerror or error}")


_READERS: Mapping[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}
