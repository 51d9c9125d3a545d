"""Problem files of any content are read or refused: no traceback, no hang, nothing written."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from mutating import mutated_bytes, mutated_values, seeds, watchdog
from problem_files import ROWS, write_rows

from rloop_lightning.cli.data import main
from rloop_lightning.data.files import ProblemFiles

SUFFIXES = ("jsonl", "json", "csv", "parquet")
WORDS = (
    *(b"[" * 3000, b"{" * 3000, b'{"a":' * 200, b"]", b"}", b'"', b"'", b",", b"\n", b"\r", b"\r\n", b"\t", b"\\"),
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"-", b"0x1", b"null", b"true", b"[]", b"{}", b'{"problem": 1}\n'),
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1b[31m", b"\xe2\x80\xae", b"\\ud800", b"\\u0000", b"\xed\xa0\x80"),
    *(b"\\boxed{", b"####", b'"answer": [[2]]', b'"id": {}', b'"problem": null', b"," * 1500, b"PAR1", b'""""'),
)
NESTED = (
    {"id": 1, "prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2"}, "k": [1.5, None]},
    {"id": 2, "prompt": [{"role": "user", "content": "2+2?"}], "reward_model": {"ground_truth": "4"}, "k": []},
)


def contents(folder: Path) -> list[tuple[str, bytes]]:
    """Sound files of every format, with their suffixes."""
    made = []
    for number, rows in enumerate((ROWS, NESTED)):
        for suffix in SUFFIXES:
            made.append((suffix, write_rows(folder / f"{number}.{suffix}", rows).read_bytes()))
    return made


def outcome(place: Path, preset: str = "auto") -> str:
    """What a run says of problem files; empty if it takes them. Nothing else may be raised."""
    before = sorted(place.parent.rglob("*"))
    try:
        with watchdog(str(place)):
            source = ProblemFiles(str(place), preset=preset, metadata_fields=("k",), skip_unreadable=True)
            problems = [*source.train(), *source.evaluation().get("validation", ())]
    except ValueError as error:
        return str(error) or "a refusal without a reason"
    finally:
        assert sorted(place.parent.rglob("*")) == before
    for problem in problems:
        f"{problem.id}{problem.prompt}{problem.answer}".encode()
    return ""


def mutated(originals: list[tuple[str, bytes]], chance: random.Random) -> tuple[str, bytes]:
    suffix, content = chance.choice(originals)
    if suffix in ("json", "jsonl") and chance.random() < 0.5:
        rows = [mutated_values(dict(chance.choice((*ROWS, *NESTED))), chance) for _ in range(3)]
        text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
        return suffix, text.encode()
    return suffix, mutated_bytes(content, chance, WORDS)


def test_files_of_every_format(tmp_path: Path) -> None:
    originals = contents(tmp_path / "sound")
    for seed in seeds(400):
        chance = random.Random(seed)
        suffix, content = mutated(originals, chance)
        file = tmp_path / "mutated" / f"train.{suffix}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        outcome(file, chance.choice(("auto", "dapo-math", "gsm8k")))
        file.unlink()


def test_folders(tmp_path: Path) -> None:
    originals = contents(tmp_path / "sound")
    for seed in seeds(30):
        chance = random.Random(seed)
        folder = tmp_path / f"folder-{seed}" / "problems"
        folder.mkdir(parents=True)
        for number in range(chance.randint(1, 4)):
            suffix, content = mutated(originals, chance)
            name = chance.choice((f"{number}", f"\x1b[31m{number}", "\u202e", "a" * 200)) + f".{suffix}"
            (folder / name).write_bytes(content)
        if chance.random() < 0.3:
            (folder / "loop.jsonl").symlink_to(folder / "loop.jsonl")
            (folder / "itself").symlink_to(folder)
            (folder / "endless.jsonl").symlink_to("/dev/zero")
        outcome(folder)


def test_the_command_ends_with_a_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals = contents(tmp_path / "sound")
    for seed in seeds(40):
        chance = random.Random(seed)
        suffix, content = mutated(originals, chance)
        file = tmp_path / f"train.{suffix}"
        file.write_bytes(content)
        with watchdog(f"seed {seed}"):
            code = main(["check", str(file)])
        printed = capsys.readouterr()
        assert code == (2 if printed.err else 0), seed
        text = printed.out + printed.err
        assert [character for character in text if not character.isprintable() and character != "\n"] == [], seed
