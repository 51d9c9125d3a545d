"""Rows of Parquet files.

A file of one kilobyte can hold 100,000 copies of a text of a megabyte, each as a reference to one entry of a
dictionary, and a file of 300 kB can hold 50 million rows. So the sizes that the file declares are checked before it is
read. Texts are read as references, and measured before copies of them are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rloop_lightning.data.parquet_sizes import DeclaredSizes, declared_sizes
from rloop_lightning.data.row import MOST_BYTES_IN_A_ROW, BadRow, Row
from rloop_lightning.system.regular_files import not_a_file

_ROWS_AT_ONCE = 1024
_BYTES_OF_A_NUMBER = 32  # as a Python object in a list

_SMALL = 2**28
"""What any file may unpack to, bytes, whatever its own size."""
_MOST_UNPACKED = 100
"""What a larger file may unpack to, in bytes for each of its own. Texts of natural language shrink to a third."""
_FEW_VALUES = 2**20
_MOST_VALUES = 10
"""The same for values, one in each column of a row, or several in a list. An answer takes at least a byte."""


def parquet_rows(file: Path) -> Iterator[Row | BadRow]:
    """The rows of a Parquet file."""
    import pyarrow.parquet as pq

    number = 0
    if kind := not_a_file(file):
        raise OSError(f"it is {kind}, not a file")
    try:
        size = file.stat().st_size
        if reason := _declared_fault(declared_sizes(file), size):
            yield BadRow(file.name, reason)
            return
        left = _most_bytes(size)
        with pq.ParquetFile(file) as table:
            texts = _texts(table.metadata)
        with pq.ParquetFile(file, read_dictionary=texts) as table:
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, use_threads=False):
                for part, part_bytes in _parts(batch):
                    left -= part_bytes
                    if part_bytes > MOST_BYTES_IN_A_ROW:
                        limit = MOST_BYTES_IN_A_ROW >> 20
                        yield BadRow(f"{file.name}[{number}]", f"a row larger than {limit} MiB; the rest is not read")
                        return
                    if left < 0:
                        yield BadRow(f"{file.name}[{number}]", _unpacks(size))
                        return
                    for values in part.to_pylist():
                        yield Row(f"{file.name}[{number}]", values)
                        number += 1
    except Exception as error:  # the reader, and the conversion of values of any type, raise many kinds
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        yield BadRow(f"{file.name}[{number}]", f"not valid Parquet: {reason}")


def _declared_fault(declared: DeclaredSizes, size: int) -> str:
    """Why a file of this size, in bytes, that declares these sizes is not read; empty if it is."""
    if declared.values > max(_FEW_VALUES, _MOST_VALUES * size):
        return (
            f"{declared.values:,} values in {size:,} bytes, more than {_MOST_VALUES} for each byte; they can't be "
            "problems"
        )
    return _unpacks(size) if declared.unpacked > _most_bytes(size) else ""


def _unpacks(size: int) -> str:
    return (
        f"{size:,} bytes that unpack to more than {_most_bytes(size):,}; a file may unpack to {_SMALL >> 20} MiB or "
        f"{_MOST_UNPACKED} times its size"
    )


def _most_bytes(size: int) -> int:
    return max(_SMALL, _MOST_UNPACKED * size)


def _texts(metadata: Any) -> list[str]:
    """The columns of texts, by their paths in the schema."""
    columns = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _parts(batch: Any) -> Iterator[tuple[Any, int]]:
    """A batch in parts whose values take at most the bytes of a row, or that are one row; with their bytes."""
    size = sum(map(_unpacked_bytes, batch.columns))
    if size <= MOST_BYTES_IN_A_ROW or batch.num_rows <= 1:
        yield batch, size
        return
    half = batch.num_rows // 2
    yield from _parts(batch.slice(0, half))
    yield from _parts(batch.slice(half))


def _unpacked_bytes(array: Any) -> int:
    """What the values of an array take, with every text counted as often as it occurs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _unpacked_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary)
        return (pc.sum(lengths.take(array.indices)).as_py() or 0) + _BYTES_OF_A_NUMBER * len(array)
    if pa.types.is_struct(kind):
        return sum(map(_unpacked_bytes, array.flatten()))
    if pa.types.is_map(kind):
        entries = pa.struct([pa.field("key", kind.key_type), pa.field("value", kind.item_type)])
        return _unpacked_bytes(array.cast(pa.list_(entries)))
    if pa.types.is_nested(kind):
        return _unpacked_bytes(array.flatten()) + _BYTES_OF_A_NUMBER * len(array)
    return int(array.nbytes) + _BYTES_OF_A_NUMBER * len(array)
