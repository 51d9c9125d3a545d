"""A data set of many rows as one file, which appears whole or not at all: Parquet, or a JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.rollouts.pool import ROW_GROUP_ROWS
from rloop_lightning.system.files import atomic_path

SUFFIXES = (".parquet", ".jsonl")


def write_rows(out: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> int:
    """Write rows atomically, some at a time, and return their number.

    Args:
        out: the file; its suffix is one of `SUFFIXES` and decides the format.
        schema: the columns.
        rows: the rows. In JSON, infinite numbers become null.

    Raises:
        WriteError: the file can't be written.
    """
    count = 0
    with atomic_path(out) as partial, _writer(partial, out.suffix, schema) as write:
        while piece := list(islice(rows, ROW_GROUP_ROWS)):
            write(piece)
            count += len(piece)
    return count


@contextmanager
def _writer(path: Path, suffix: str, schema: pa.Schema) -> Iterator[Callable[[list[dict[str, Any]]], Any]]:
    if suffix == ".parquet":
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            yield lambda rows: writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    else:
        with path.open("w", encoding="ascii", newline="\n") as file:
            yield lambda rows: file.writelines(_lines(rows))


def _lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        finite = {key: _finite(value) for key, value in row.items()}
        yield json.dumps(finite, allow_nan=False) + "\n"  # ASCII: nothing in it acts in a terminal, or ends a line


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
