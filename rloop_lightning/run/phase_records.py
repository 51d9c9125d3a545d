"""The record of a phase's metrics: JSON lines with checksums, from which a damaged metrics.csv is rebuilt.

    record = PhaseRecord(run / "round-0" / "explore" / "metrics.jsonl")
    record.append({"round": 0, "phase": "explore", "step": 1, "rollout/reward_mean": 0.25})
    record.complete(1)
    record.read().rows  # {1: {"round": 0, ...}}

A line is appended whole or not at all, and never changed:

    {"crc32": "5d1f3ab2", "row": {"round": 0, "phase": "explore", "step": 1, ...}}  metrics of a step
    {"crc32": "8a0c91e7", "complete": 200}                 the phase has ended after its step 200
    {"crc32": "03bb6f5a", "missing": [[3, 5]]}             the rows of steps 3 to 5 were lost
    {"crc32": "b2f01a44", "complete": 7, "cut": true}      any rows after step 7 were lost too

Several rows of one step are merged. NaN and infinite values are strings, because JSON has no numbers for them.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rloop_lightning.run.metrics_csv import KEYS, PHASES, Row
from rloop_lightning.system.files import append, atomic_path

Steps = tuple[int, int]
"""A first and a last step."""

_CHECKSUM = "crc32"
_NO_NUMBERS = ("nan", "inf", "-inf")


@dataclass
class Recorded:
    """What can be read of a record.

    Args:
        rows: the rows by step.
        end: the phase's last step, if it is complete.
        cut: whether `end` is only the last step with a row, as the phase's own end was lost.
        missing: steps whose rows were lost before.
        faults: what is wrong with it, with the line.
    """

    rows: dict[int, Row] = field(default_factory=dict)
    end: int | None = None
    cut: bool = False
    missing: list[Steps] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def lines(self) -> bytes:
        """The record with one line per step."""
        bodies: list[dict[str, Any]] = [{"row": self.rows[step]} for step in sorted(self.rows)]
        bodies += [{"missing": self.missing}] if self.missing else []
        if self.end is not None:
            bodies.append({"complete": self.end, **({"cut": True} if self.cut else {})})
        return b"".join(map(_line, bodies))


@dataclass(frozen=True)
class PhaseRecord:
    """The record of one phase.

    Args:
        path: its file.
    """

    path: Path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add metrics of a step. They are on disk when this returns.

        Args:
            row: integers and floats by name, and the keys of metrics.csv.
        """
        append(self.path, _line({"row": row}))

    def complete(self, end: int) -> None:
        """Note that the phase has ended after its step `end`, so that a cut record is noticed."""
        append(self.path, _line({"complete": end}))

    def mentions_losses(self) -> bool:
        """Whether `read` may find rows that were lost before. Much faster than reading."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        return b'"missing"' in content or b'"cut"' in content

    def read(self) -> Recorded:
        """What can be read of the record, whatever its damage. A missing record is empty."""
        found = Recorded()
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return found
        except OSError as error:
            found.faults.append(error.strerror or str(error))
            return found
        whole = content[: content.rfind(b"\n") + 1]  # a kill may leave a partial line after the last line break
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                _take(_body(line), found)
            except (ValueError, RecursionError) as error:
                found.faults.append(f"line {number}: {error if isinstance(error, _LineError) else 'not a record'}")
        if found.end is not None and len(content) > len(whole):  # nothing follows the end of a phase
            found.faults.append("bytes after its last line")
        return found

    def replace(self, recorded: Recorded) -> None:
        """Write the record anew, atomically, unless its content is the same. An empty one is removed."""
        content = recorded.lines()
        if not content:
            self.path.unlink(missing_ok=True)
        elif not self.path.is_file() or self.path.read_bytes() != content:
            with atomic_path(self.path) as partial:
                partial.write_bytes(content)


class _LineError(ValueError):
    """What is wrong with a line."""


def _body(line: bytes) -> dict[str, Any]:
    """The content of a line without its checksum.

    Raises:
        ValueError: it is not such a line, or its checksum differs.
    """
    body = json.loads(line)
    if not isinstance(body, dict) or _checksum(body) != body.pop(_CHECKSUM, None):
        raise _LineError("its checksum differs")
    return body


def _take(body: Mapping[str, Any], found: Recorded) -> None:
    """Add what a line says.

    Raises:
        ValueError: it is no line of a record.
    """
    match body:
        case {"row": {"round": int(), "phase": str(phase), "step": int(step), **metrics}} if phase in PHASES:
            keys = {name: body["row"][name] for name in KEYS}
            numbers = {str(name): _number(value) for name, value in metrics.items()}
            found.rows.setdefault(step, {}).update(keys | numbers)
        case {"complete": int(end)}:
            found.end, found.cut = end, body.get("cut") is True
        case {"missing": [*ranges]}:
            found.missing += [_range(one) for one in ranges]
        case _:
            raise _LineError("not a record")


def _range(value: Any) -> Steps:
    match value:
        case [int(first), int(last)]:
            return first, last
    raise _LineError("not a range of steps")


def _number(value: Any) -> int | float:
    if value in _NO_NUMBERS:
        return float(value)
    if not isinstance(value, int | float):
        raise _LineError("a metric is not a number")
    return value


def _line(body: Mapping[str, Any]) -> bytes:
    if "row" in body:
        body = {"row": {name: _json(value) for name, value in body["row"].items()}}
    return json.dumps({_CHECKSUM: _checksum(body), **body}).encode() + b"\n"


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _checksum(body: Mapping[str, Any]) -> str:
    content = json.dumps({name: value for name, value in body.items() if name != _CHECKSUM})
    return f"{zlib.crc32(content.encode()):08x}"


def gaps(expected: range, known: Iterable[int], named: Sequence[Steps] = ()) -> list[Steps]:
    """The expected steps that are neither known nor in a named range, as ranges."""
    found = []
    place = expected.start
    for first, last in [*sorted([*((step, step) for step in known), *named]), (expected.stop, expected.stop)]:
        if place < min(first, expected.stop):
            found.append((place, min(first, expected.stop) - 1))
        place = max(place, last + 1)
    return found
