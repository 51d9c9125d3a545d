"""Settings files that stand for endless work, and paths that are no files, end with one message that names the line."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from rloop_lightning.cli.config_files import read_config
from rloop_lightning.cli.main import main

LETTERS = "abcdefghij"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]\n" for before, now in pairwise(LETTERS)
)
FLAT_LAUGHS = "[" + ", ".join(line.partition(": ")[2] for line in LAUGHS.splitlines()) + "]"

TEXTS = {
    "aliases of aliases": (LAUGHS, "line 5: more than 20,000 values, aliases counted as what they stand for"),
    "merges of merges": (LAUGHS.replace("[*", "[<<: *"), "line 5: more than 20,000 values"),
    "many values": ("loop: [" + "1," * 300_000 + "]", "line 1: more than 20,000 values"),
    "itself": ("algo: dapo\nloop: &a [*a]\n", "line 2: *a contains itself"),
    "itself, deeper": ("loop: &a {b: [{c: *a}]}\n", "line 1: *a contains itself"),
    "brackets": ("loop: " + "[" * 10_000, "line 1: nested deeper than 50 levels"),
    "braces": ("loop:\n " + "{a: " * 10_000, "line 2: nested deeper than 50 levels"),
    "indents": ("\n".join(" " * n + "a:" for n in range(300)), "line 50: nested deeper than 50 levels"),
    "a hexadecimal number": ("loop: 0x" + "f" * 5000, "line 1: a number of 5,002 characters, at most 100 are read"),
    "a number to the base 60": ("a: 1" + ":1" * 200_000, "line 1: a number of 400,001 characters, at most 100"),
    "a number by its tag": ("loop: !!int '0x" + "f" * 5000 + "'", "line 1: a number of 5,002 characters"),
    "a date": ("loop: {rounds: !!timestamp 2026-01-01}", "loop.rounds: expected text, a number, a list or a mapping"),
    "bytes": ("loop: !!binary aGk=", "loop: expected text, a number, a list or a mapping, got a bytes"),
    "a key that is no text": ("loop: {? !!timestamp 2026-01-01 : 1}", "loop: a key must be text"),
    "Python": ("loop: !!python/object/apply:os.system [id]", "could not determine a constructor for the tag"),
    "nothing": ("", "expected groups of settings such as `loop:`, got nothing"),
    "UTF-16": ("loop: {}".encode("utf-16"), "UTF-16, save the file as UTF-8"),
    "bytes of a program": (b"\x7fELF\n\x80" + bytes(range(256)), "line 2: not UTF-8 text: byte 0x80"),
}


@pytest.mark.parametrize(("text", "said"), TEXTS.values(), ids=TEXTS)
def test_texts(text: str | bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    wrong: list[str] = []
    assert read_config(str(file), wrong) == {}
    assert len(wrong) == 1
    assert said in wrong[0]


def test_a_bomb_in_a_text_that_the_parser_reads_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"trainer:\n  callbacks: '{FLAT_LAUGHS}'\n")
    assert main(["--config", str(file)]) == 2
    assert "trainer.callbacks: a text of more than 20,000 values" in capsys.readouterr().err


def test_long_texts_are_no_bombs(tmp_path: Path) -> None:
    texts = {"template": "{problem} " + "[({" * 20 + "x * y & z " * 5000, "digits": "9" * 900, "hash": "f" * 4000}
    file = tmp_path / "settings.yaml"
    lines = [f"  {name}: '{text}'\n" for name, text in texts.items()]
    file.write_text("data:\n" + "".join(lines))
    wrong: list[str] = []
    assert read_config(str(file), wrong) == {"data": texts}
    assert wrong == []


def test_what_is_no_settings_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("large.yaml").touch()
    os.truncate("large.yaml", 2**30)
    Path("loop.yaml").symlink_to("loop.yaml")
    expected = {
        "pipe": "--config: 'pipe' is a pipe, not a file",
        "/dev/zero": "--config: '/dev/zero' is a device, not a file",
        "large.yaml": "--config large.yaml: larger than 1,048,576 bytes, which no settings file is",
        "loop.yaml": "--config: no file 'loop.yaml'",
        "/proc/self/environ": "--config /proc/self/environ: expected groups of settings such as `loop:`, got nothing",
        "x" * 300: "--config: no file 'xxx",
        "a\0b": "--config: no file 'a",
    }
    for name, message in expected.items():
        wrong: list[str] = []
        assert read_config(name, wrong) == {}
        assert [one.startswith(message) for one in wrong] == [True], wrong
