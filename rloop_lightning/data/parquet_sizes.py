"""The sizes that a Parquet file declares, read from its footer and its page headers (Thrift's compact protocol).

    declared = declared_sizes(path)

pyarrow gives the same numbers, but ends the process on some damaged footers.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAGIC = b"PAR1"
_DEEPEST = 30  # of Parquet's own structures: 8
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)


@dataclass(frozen=True)
class DeclaredSizes:
    """What a file says of itself.

    Args:
        values: number of values, in all columns and lists.
        unpacked: bytes of all pages when they are unpacked.
    """

    values: int
    unpacked: int


def declared_sizes(path: Path) -> DeclaredSizes:
    """The sizes of a file.

    Raises:
        ValueError: it is not a Parquet file, or damaged.
        OSError: it can't be read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if len(content) < 12 or content[-4:] != _MAGIC:
            raise ValueError("it does not end as a Parquet file does")
        start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        if start < 0:
            raise ValueError("its footer is damaged")
        try:
            footer = _Thrift(content, start).struct()
            values, unpacked = max(footer.get(3, 0), 0), 0
            counted = 0
            for group in footer.get(4, []):
                for column in group[1]:
                    found = column[3]
                    page_values, page_bytes = _pages(content, found)
                    counted += max(found[5], page_values)
                    unpacked += max(found[6], page_bytes)
        except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError("its footer or a page is damaged") from error
    return DeclaredSizes(max(values, counted), unpacked)


def _pages(content: mmap.mmap, column: dict[int, Any]) -> tuple[int, int]:
    """Values and unpacked bytes of the pages of a column's chunk."""
    place = min(offset for offset in (column[9], column.get(11, 0)) if offset > 0)
    end = place + column[7]
    values = unpacked = 0
    while place < end:
        reader = _Thrift(content, place)
        header = reader.struct()
        if header[2] < 0 or header[3] < 0 or reader.place + header[3] > len(content):
            raise ValueError("a page is longer than the file")
        unpacked += header[2]
        values += (header.get(5) or header.get(8) or {}).get(1, 0)
        place = reader.place + header[3]
    return values, unpacked


class _Thrift:
    """Reads one structure as a dict of its fields by their numbers."""

    def __init__(self, content: mmap.mmap, place: int) -> None:
        self.content = content
        self.place = place

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > _DEEPEST:
            raise ValueError("nested too deep")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != _STOP:
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind in _INTEGERS:
            return self._integer()
        if kind in (_BYTE, _DOUBLE):
            return self._skip(1 if kind == _BYTE else 8)
        if kind == _BINARY:
            return self._skip(self._unsigned())
        if kind in (_LIST, _SET):
            head = self._byte()
            count = self._count(head >> 4 if head >> 4 < 15 else self._unsigned())
            return [self._item(head & 15, depth + 1) for _ in range(count)]
        if kind == _MAP:
            count = self._count(self._unsigned())
            kinds = self._byte() if count else 0
            return [(self._item(kinds >> 4, depth + 1), self._item(kinds & 15, depth + 1)) for _ in range(count)]
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError("unknown type")

    def _item(self, kind: int, depth: int) -> Any:
        """A value in a list, where a truth value has a byte of its own."""
        return self._skip(1) if kind in (_TRUE, _FALSE) else self._value(kind, depth)

    def _count(self, count: int) -> int:
        if count > len(self.content) - self.place:  # every item has a byte
            raise ValueError("longer than the file")
        return count

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("no integer")

    def _byte(self) -> int:
        byte = self.content[self.place]
        self.place += 1
        return byte

    def _skip(self, count: int) -> None:
        """Leave out what nobody needs."""
        self.place += self._count(count)
