"""Rows of JSONL, JSON and CSV files."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rloop_lightning.data.row import MOST_BYTES_IN_A_ROW, MOST_DEPTH, BadRow, Row
from rloop_lightning.system.regular_files import open_regular

_MOST_BYTES_OF_JSON = 2**31
"""A JSON file is read whole, and takes up to twenty times its size then."""
_MOST_COLUMNS = 1000
"""Every row of a CSV file gets a value for each column, even if it is two bytes long."""

_TOO_LONG = f"longer than {MOST_BYTES_IN_A_ROW >> 20} MiB; the rest of the file is not read"
_TOO_LARGE = f"an integer of more than {sys.get_int_max_str_digits():,} digits"
_TOO_DEEP = f"nested deeper than {MOST_DEPTH} levels"


def jsonl_rows(file: Path) -> Iterator[Row | BadRow]:
    """The rows of a JSONL file; blank lines are skipped."""
    with open_regular(file) as lines:
        for number, line in enumerate(_lines(lines), 1):
            place = f"{file.name}:{number}"
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                yield BadRow(place, "UTF-16, save the file as UTF-8")
                return
            if len(line) > MOST_BYTES_IN_A_ROW:
                yield BadRow(place, f"a line {_TOO_LONG}")
                return
            if not line.strip(b" \t\r\n\xef\xbb\xbf"):
                continue
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield BadRow(place, f"not UTF-8: byte {line[error.start]:#04x} at column {error.start + 1}")
            except json.JSONDecodeError as error:
                yield BadRow(place, f"not valid JSON: {error.msg} at column {error.colno}")
            except RecursionError:
                yield BadRow(place, f"not readable as JSON: {_TOO_DEEP}")
            except ValueError:
                yield BadRow(place, f"not readable as JSON: {_TOO_LARGE}")
            else:
                yield _row(place, value)


def json_rows(file: Path) -> Iterator[Row | BadRow]:
    """The rows of a JSON file: a list of objects, or an object that holds one list."""
    with open_regular(file) as content:
        size = os.fstat(content.fileno()).st_size
        if size > _MOST_BYTES_OF_JSON:
            limit = _MOST_BYTES_OF_JSON >> 30
            yield BadRow(file.name, f"larger than {limit} GiB; save it as JSONL, which is read row by row")
            return
        text = content.read(size)
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        yield BadRow(file.name, f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}")
        return
    except json.JSONDecodeError as error:
        hint = "; one object a line is JSONL, name it .jsonl" if error.msg == "Extra data" else ""
        yield BadRow(f"{file.name}:{error.lineno}", f"not valid JSON: {error.msg} at column {error.colno}{hint}")
        return
    except RecursionError:
        yield BadRow(file.name, f"not readable as JSON: {_TOO_DEEP}")
        return
    except ValueError:
        yield BadRow(file.name, f"not readable as JSON: {_TOO_LARGE}")
        return
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        yield BadRow(file.name, "expected a list of objects, or an object that holds one list")
        return
    for number, item in enumerate(value):
        yield _row(f"{file.name}[{number}]", item)


def csv_rows(file: Path) -> Iterator[Row | BadRow]:
    """The rows of a CSV file with a header."""
    with (
        _long_cells(),
        open_regular(file) as binary,
        io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text,
    ):
        lines = _CSVLines(text)
        reader = csv.DictReader(lines, strict=True)
        try:
            names = reader.fieldnames or []
            if len(names) > _MOST_COLUMNS:
                yield BadRow(f"{file.name}:1", f"{len(names):,} columns, more than {_MOST_COLUMNS:,}")
                return
            repeated = [name for name, times in Counter(names).items() if name and times > 1]
            if repeated:  # DictReader would take the last of them
                yield BadRow(f"{file.name}:1", f"the header has the column {repeated[0][:80]!r} more than once")
                return
            for values in reader:
                lines.begin_row()
                place = f"{file.name}:{reader.line_num}"
                extra: Any = values.get(None)  # DictReader's key for surplus cells
                if extra is not None:
                    yield BadRow(place, f"{len(names) + len(extra)} cells, the header has {len(names)}")
                else:
                    # DictReader has None for the cells that a short row lacks.
                    yield Row(place, {name: cell for name, cell in values.items() if cell is not None})
        except UnicodeDecodeError as error:
            yield BadRow(f"{file.name}:{reader.line_num + 1} or later", f"not UTF-8: {error.reason}")
        except csv.Error as error:
            yield BadRow(f"{file.name}:{reader.line_num + 1}", f"not valid CSV: {error}")


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """The csv module's limit of a cell, which holds for the whole process, is that of a row."""
    before = csv.field_size_limit(MOST_BYTES_IN_A_ROW)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class _CSVLines:
    """The lines of a CSV file. A row may have several, but only so many characters in all."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.begin_row()

    def begin_row(self) -> None:
        self._left = MOST_BYTES_IN_A_ROW

    def __iter__(self) -> _CSVLines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise csv.Error(f"a row {_TOO_LONG}")
        if not line:
            raise StopIteration
        return line


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; a line that is too long is cut one byte behind the limit."""
    while line := file.readline(MOST_BYTES_IN_A_ROW + 1):
        yield line


def _row(place: str, value: Any) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow(place, f"expected an object, got {type(value).__name__}")
    return BadRow(place, _TOO_DEEP) if _is_too_deep(value) else Row(place, value)


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
