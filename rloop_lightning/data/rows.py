"""Rows of JSONL, JSON, CSV and Parquet files, each with its place in the file.

Rows are read one by one. A row that can't be read becomes a `BadRow` with its place and reason, so one pass finds all
faults of a file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")

_MOST_CHARACTERS_IN_A_CELL = 2**24
_PARQUET_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Row:
    """A row and its place: `file.jsonl:3` is line 3, `file.parquet[2]` is the third row."""

    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A place without a readable row, and the reason. The place is empty if the whole set can't be read."""

    place: str
    reason: str


def looks_like_a_file(name: str) -> bool:
    """Whether a name on the command line means a file or folder, which may be missing."""
    rooted = name.startswith(("./", "../", "/", "~")) or name.endswith("/")
    return rooted or Path(name).suffix.lower() in SUFFIXES or Path(name).exists()


def files_of(path: Path) -> list[Path]:
    """The files at a path: the file itself, or those in the folder, sorted by name.

    Raises:
        ValueError: there is no readable file; the message says what is expected.
    """
    known = ", ".join(SUFFIXES)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise ValueError(f"the folder {path} holds no file that ends in {known}")
        return found
    if not path.exists():
        raise ValueError(f"no such file or folder: {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: can't tell the format from the name; it must end in {known}")
    return [path]


def read_rows(file: Path) -> Iterator[Row | BadRow]:
    """The rows of a file, in order."""
    try:
        yield from _READERS[file.suffix.lower()](file)
    except OSError as error:
        yield BadRow(file.name, f"can't be read: {error.strerror or error}")


def _jsonl(file: Path) -> Iterator[Row | BadRow]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{file.name}:{number}"
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                yield BadRow(place, "UTF-16, save the file as UTF-8")
                return
            if not line.strip(b" \t\r\n\xef\xbb\xbf"):
                continue
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield BadRow(place, f"not UTF-8: byte {line[error.start]:#04x} at column {error.start + 1}")
            except json.JSONDecodeError as error:
                yield BadRow(place, f"not valid JSON: {error.msg} at column {error.colno}")
            except (ValueError, RecursionError) as error:  # integers with thousands of digits, deep nesting
                yield BadRow(place, f"not readable as JSON: {error}")
            else:
                yield _row(place, value)


def _json(file: Path) -> Iterator[Row | BadRow]:
    try:
        value = json.loads(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        yield BadRow(file.name, f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}")
        return
    except json.JSONDecodeError as error:
        hint = "; one object a line is JSONL, name it .jsonl" if error.msg == "Extra data" else ""
        yield BadRow(f"{file.name}:{error.lineno}", f"not valid JSON: {error.msg} at column {error.colno}{hint}")
        return
    except (ValueError, RecursionError) as error:
        yield BadRow(file.name, f"not readable as JSON: {error}")
        return
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        yield BadRow(file.name, "expected a list of objects, or an object that holds one list")
        return
    for number, item in enumerate(value):
        yield _row(f"{file.name}[{number}]", item)


def _csv(file: Path) -> Iterator[Row | BadRow]:
    csv.field_size_limit(_MOST_CHARACTERS_IN_A_CELL)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for values in reader:
                place = f"{file.name}:{reader.line_num}"
                names = reader.fieldnames or []
                extra: Any = values.get(None)  # DictReader's key for surplus cells
                if extra is not None:
                    yield BadRow(place, f"{len(names) + len(extra)} cells, the header has {len(names)}")
                else:
                    yield Row(place, values)
        except UnicodeDecodeError as error:
            yield BadRow(f"{file.name}:{reader.line_num + 1} or later", f"not UTF-8: {error.reason}")
        except csv.Error as error:
            yield BadRow(f"{file.name}:{reader.line_num + 1}", f"not valid CSV: {error}")


def _parquet(file: Path) -> Iterator[Row | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    yield Row(f"{file.name}[{number}]", values)
                    number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        yield BadRow(f"{file.name}[{number}]", f"not valid Parquet: {str(error).splitlines()[0]}")


def _row(place: str, value: Any) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(place, value)
    return BadRow(place, f"expected an object, got {type(value).__name__}")


_READERS: Mapping[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
