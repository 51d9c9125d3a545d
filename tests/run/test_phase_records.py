"""The record of a phase: lines with checksums, whatever becomes of them."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import pytest

from rloop_lightning.run.phase_records import PhaseRecord, gaps

KEY = {"round": 0, "phase": "explore"}


def written(path: Path) -> PhaseRecord:
    record = PhaseRecord(path / "round-0" / "explore" / "metrics.jsonl")
    for step in (1, 2, 3):
        record.append({**KEY, "step": step, "a": step / 7})
    record.append({**KEY, "step": 3, "b": 2})  # by the module itself
    record.complete(3)
    return record


def test_a_line_is_json_with_the_checksum_of_what_it_says(tmp_path: Path) -> None:
    lines = written(tmp_path).path.read_text().splitlines()
    assert len(lines) == 5
    line = json.loads(lines[1])
    assert line["row"] == {"round": 0, "phase": "explore", "step": 2, "a": 2 / 7}
    said = json.dumps({"row": line["row"]})
    assert line["crc32"] == f"{zlib.crc32(said.encode()):08x}"


def test_rows_of_one_step_are_merged_and_the_end_is_known(tmp_path: Path) -> None:
    found = written(tmp_path).read()
    assert [*found.rows] == [1, 2, 3]
    assert found.rows[3] == {**KEY, "step": 3, "a": 3 / 7, "b": 2}
    assert (found.end, found.missing, found.faults) == (3, [], [])


def test_numbers_that_json_has_not_come_back(tmp_path: Path) -> None:
    record = PhaseRecord(tmp_path / "metrics.jsonl")
    record.append({**KEY, "step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": -0.0, "e": 0.1 + 0.2})
    assert json.loads(record.path.read_text(), parse_constant=pytest.fail)
    row = record.read().rows[1]
    assert math.isnan(row["a"])
    assert (row["b"], row["c"], row["e"]) == (math.inf, -math.inf, 0.1 + 0.2)
    assert math.copysign(1, row["d"]) == -1


def test_a_half_written_last_line_is_dropped_silently(tmp_path: Path) -> None:
    record = written(tmp_path)
    lines = record.path.read_bytes().splitlines(keepends=True)
    record.path.write_bytes(b"".join(lines[:-1]))  # without the phase's end
    before = record.read()
    record.path.write_bytes(b"".join(lines[:-1]) + lines[-1][:13])
    assert record.read() == before
    assert (before.end, before.faults) == (None, [])


def test_bytes_after_the_end_of_a_phase_are_a_fault(tmp_path: Path) -> None:
    record = written(tmp_path)
    record.path.write_bytes(record.path.read_bytes() + b'{"crc32": "12')
    assert record.read().faults == ["bytes after its last line"]


def test_every_changed_byte_is_noticed_or_changes_no_number(tmp_path: Path) -> None:
    record = written(tmp_path)
    whole, want = record.path.read_bytes(), record.read()
    noticed = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1
        record.path.write_bytes(content)
        found = record.read()
        if found.faults:
            assert found.faults[0].startswith(f"line {whole[:place].count(10) + 1}: ")
            noticed += 1
        elif place == len(whole) - 1:  # the last line break: the line is half-written
            assert found.end is None
        else:  # a 17th digit, of which the number next to it is the same
            assert found == want
    assert noticed > 0.98 * len(whole)


def checked(body: object) -> str:
    return (
        json.dumps({"crc32": f"{zlib.crc32(json.dumps(body).encode()):08x}", **body}) if isinstance(body, dict) else ""
    )


NOT_LINES = {
    "NUL": "\0" * 30,
    "no object": "[1]",
    "a string": '"row"',
    "deep": "[" * 100_000,
    "a long number": "1" * 10_000,
    "of others": '{"step": 1, "loss": 0.5}',
    "no key": checked({"row": {"step": 1}}),
    "a list for a row": checked({"row": [1]}),
    "text for a number": checked({"row": {**KEY, "step": 4, "a": "much"}}),
    "an unknown phase": checked({"row": {"round": 0, "phase": "\x1b[2J", "step": 4}}),
    "gaps that are none": checked({"missing": [1, [2]]}),
    "an unknown line": checked({"later": 3}),
}


@pytest.mark.parametrize("kind", NOT_LINES)
def test_a_line_of_another_kind_is_named_and_left_out(kind: str, tmp_path: Path) -> None:
    record = written(tmp_path)
    before, want = record.path.read_text(), record.read()
    record.path.write_text(NOT_LINES[kind] + "\n" + before)
    found = record.read()
    (fault,) = found.faults
    assert fault.startswith("line 1: ")
    assert "\x1b" not in fault
    assert (found.rows, found.end, found.missing) == (want.rows, want.end, want.missing)


def test_a_folder_in_place_of_a_record_is_named(tmp_path: Path) -> None:
    record = PhaseRecord(tmp_path)
    assert record.read().faults == ["Is a directory"]


@pytest.mark.parametrize(
    ("expected", "known", "named", "want"),
    [
        (range(1, 6), [], [], [(1, 5)]),
        (range(1, 6), [1, 3, 5], [], [(2, 2), (4, 4)]),
        (range(1, 6), [3, 1, 9], [], [(2, 2), (4, 5)]),
        (range(1, 6), [1], [(2, 3)], [(4, 5)]),
        (range(1, 6), [1, 2], [(3, 10**30)], []),
        (range(1, 1), [4], [], []),
        (range(1, 10**12), [1], [], [(2, 10**12 - 1)]),
    ],
)
def test_gaps(expected: range, known: list[int], named: list[tuple[int, int]], want: list[tuple[int, int]]) -> None:
    assert gaps(expected, known, named) == want
