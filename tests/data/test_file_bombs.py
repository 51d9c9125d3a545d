"""Small files that stand for endless work, and paths that are no files, end with one message in bounded memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rloop_lightning.data.files import ProblemFiles
from rloop_lightning.data.parquet_sizes import declared_sizes

MEMORY = 3 * 2**30
"""Address space of the process that reads all of the files below, bytes; half of it is Arrow's before it reads."""

READ = """
import json, resource, sys
from pathlib import Path
from rloop_lightning.data.rows import BadRow, read_rows
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
said = {}
for file in sorted(Path(sys.argv[2]).iterdir()):
    said[file.name] = [f"{row.place}: {row.reason}" for row in read_rows(file) if isinstance(row, BadRow)]
print(json.dumps(said))
"""


def references(text: str, count: int) -> pa.Array:
    """A text so many times, in memory and on disk only once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), [text])


def write_bombs(folder: Path) -> None:
    big, count = "x" * 10**6, 100_000
    table = pa.table({"problem": references(big, count), "answer": references("2", count)})
    pq.write_table(table, folder / "copies.parquet", compression="zstd")
    texts = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), references(big, count))
    table = pa.table({"problem": pa.StructArray.from_arrays([texts], ["inner"]), "answer": ["2"]})
    pq.write_table(table, folder / "one-row.parquet", compression="zstd")
    table = pa.table({"problem": ["0" * 300_000_000], "answer": ["2"]})
    pq.write_table(table, folder / "zeros.parquet", compression="zstd", use_dictionary=False, write_statistics=False)
    table = pa.table({"problem": references("1+1", 10**7), "answer": references("2", 10**7)})
    pq.write_table(table, folder / "rows.parquet", compression="zstd", row_group_size=10**7)
    (folder / "deep.jsonl").write_text(
        '{"problem": ' + "[" * 900 + "]" * 900 + "}\n" + '{"problem": ' + "[" * 10**5 + "]" * 10**5 + "}\n"
    )
    (folder / "deep.json").write_text('[{"a": ' + "[" * 10**5 + "]" * 10**5 + "}]")
    (folder / "digits.jsonl").write_text('{"answer": ' + "1" * 10**6 + "}\n")
    (folder / "columns.csv").write_text("," * 10**6 + "\n1\n")
    (folder / "lines.jsonl").write_text("x\n" * 10**6)
    for name in ("endless.jsonl", "endless.csv", "endless.json"):
        (folder / name).touch()
        os.truncate(folder / name, 2**32)  # holes: they take no space


EXPECTED = {
    "copies.parquet": "copies.parquet[256]: {size} bytes that unpack to more than 268,435,456; a file may unpack to "
    "256 MiB or 100 times its size",
    "one-row.parquet": "one-row.parquet[0]: a row larger than 16 MiB; the rest is not read",
    "zeros.parquet": "zeros.parquet: {size} bytes that unpack to more than 268,435,456; a file may unpack to "
    "256 MiB or 100 times its size",
    "rows.parquet": "rows.parquet: 20,000,000 values in {size} bytes, more than 10 for each byte; they can't be "
    "problems",
    "deep.jsonl": "deep.jsonl:1: nested deeper than 100 levels",
    "deep.json": "deep.json: not readable as JSON: nested deeper than 100 levels",
    "digits.jsonl": "digits.jsonl:1: not readable as JSON: an integer of more than 4,300 digits",
    "columns.csv": "columns.csv:1: 1,000,001 columns, more than 1,000",
    "lines.jsonl": "lines.jsonl:1: not valid JSON: Expecting value at column 1",
    "endless.jsonl": "endless.jsonl:1: a line longer than 16 MiB; the rest of the file is not read",
    "endless.csv": "endless.csv:1: not valid CSV: a row longer than 16 MiB; the rest of the file is not read",
    "endless.json": "endless.json: larger than 2 GiB; save it as JSONL, which is read row by row",
}


def test_bombs_end_with_a_message_in_bounded_memory(tmp_path: Path) -> None:
    write_bombs(tmp_path)
    sizes = {file.name: f"{file.stat().st_size:,}" for file in tmp_path.iterdir()}
    assert int(sizes["copies.parquet"].replace(",", "")) < 2000
    arguments = [sys.executable, "-c", READ, str(MEMORY), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {name: reasons[0] for name, reasons in said.items()} == {
        name: text.format(size=sizes[name]) for name, text in EXPECTED.items()
    }
    assert said["lines.jsonl"][-1] == "lines.jsonl: it is read no further, after 1,000 rows that can't be read"
    assert len(said["lines.jsonl"]) == 1001


def test_what_is_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jsonl")
    Path("zero.jsonl").symlink_to("/dev/zero")
    Path("loop.jsonl").symlink_to("loop.jsonl")
    Path("environ.jsonl").symlink_to("/proc/self/environ")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jsonl")
        expected = {
            "pipe.jsonl": "--data: pipe.jsonl is a pipe, not a file; save the problems in a file",
            "zero.jsonl": "--data: zero.jsonl is a device, not a file; save the problems in a file",
            "socket.jsonl": "--data: socket.jsonl is a socket, not a file; save the problems in a file",
            "loop.jsonl": "--data: no such file or folder: loop.jsonl",
            "environ.jsonl": "--data environ.jsonl: the set is empty",
            "a\0.jsonl": "--data: no such file or folder: a\\x00.jsonl",
            f"{'x' * 300}.jsonl": f"--data: no such file or folder: {'x' * 200} ... (106 more characters)",
            "~nobody-of-that-name/a.jsonl": "--data ~nobody-of-that-name/a.jsonl: there is no user of that name",
        }
        for path, message in expected.items():
            with pytest.raises(ValueError, match="--data") as caught:
                ProblemFiles(path).train()
            assert str(caught.value) == message


def test_the_declared_sizes_are_those_of_arrow(tmp_path: Path) -> None:
    rows = [
        {"a": f"text {n}" * 9, "b": [{"c": n, "d": None}] * (n % 3), "e": n / 2, "f": n % 2 == 0} for n in range(9999)
    ]
    for version, compression in (("1.0", "snappy"), ("2.0", "zstd")):
        file = tmp_path / f"{version}.parquet"
        pq.write_table(
            pa.Table.from_pylist(rows),
            file,
            data_page_version=version,
            compression=compression,
            row_group_size=4000,
            data_page_size=10_000,
        )
        metadata = pq.ParquetFile(file).metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(metadata.num_columns)]
        declared = declared_sizes(file)
        assert declared.values == sum(chunk.num_values for chunk in chunks)
        assert declared.unpacked == sum(chunk.total_uncompressed_size for chunk in chunks)


def test_a_footer_can_not_hide_the_size_of_a_page(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    table = pa.table({"problem": ["0" * 2**20], "answer": ["2"]})
    pq.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=False)
    content = file.read_bytes()
    size = pq.ParquetFile(file).metadata.row_group(0).column(0).total_uncompressed_size

    def varint(value: int) -> bytes:
        value *= 2
        return bytes([value & 127 | 128, value >> 7 & 127 | 128, value >> 14 & 127 | 128, value >> 21])

    assert content.count(varint(size)) == 1
    file.write_bytes(content.replace(varint(size), varint(1)[:1] + b"\x80\x80\x00"))
    assert declared_sizes(file).unpacked > 2**20
