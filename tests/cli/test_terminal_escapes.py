"""What files, names and variables hold reaches the terminal without control characters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from problem_files import write_rows

from rloop_lightning.cli import data, main

EVIL = "a\x1b[31m\x07\r\x85\u2028\u202eb\nrloop-fit: error: forged\tc"
ROW = {"id": "1", "problem": "1+1", "answer": "2"}


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """All output, of which every character is printable."""
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert {character for character in text if not character.isprintable()} <= {"\n"}
    return text


SETTINGS = {
    "an unknown group": {EVIL: {"rounds": 1}},
    "an unknown key": {"loop": {EVIL: 1}},
    "a value of the wrong type": {"loop": {"rounds": EVIL}},
    "a value that is checked late": {"data": {"name": "files", "path": EVIL, "preset": EVIL, "template": EVIL}},
    "the name of a part": {"algo": EVIL},
    "the class path of a part": {"reward": {"class_path": f"evil.{EVIL}"}},
    "a part's field": {"algo": {"name": "dapo", EVIL: EVIL}},
    "a callback": {"trainer": {"callbacks": [{"class_path": EVIL, "init_args": {EVIL: EVIL}}]}},
    "a trainer's flag": {"trainer": {"accelerator": EVIL, "precision": EVIL, "profiler": EVIL}},
    "a model": {"policy": {"model": EVIL}},
    "a set": {"data": {"name": "files", "path": "x.jsonl", "eval": {EVIL: EVIL}, "eval_presets": {EVIL: EVIL}}},
    "a choice": {"loop": {"select": EVIL}, "eval": {"sets": [EVIL]}},
    "a mapping in a text": {"trainer": {"logger": f"{{class_path: '{EVIL}'}}"}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert main.main(["--config", "settings.yaml", "--out", "run"]) == 2
    assert printed(capsys)


@pytest.mark.parametrize("text", ["loop: *{}", "? [{}]\n: 1", "loop: !{} x", "- {}", "{}", "loop: 'x", "\x1b[31m: 1"])
def test_texts_that_are_not_yaml(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text.replace("{}", json.dumps(EVIL)[1:-1]))
    assert main.main(["--config", str(file)]) == 2
    assert printed(capsys)


def test_settings_that_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--print_config", "--hub.push", "a/b", f"--out={EVIL}"])
    shown = yaml.safe_load(printed(capsys))
    assert shown["out"] == EVIL


@pytest.mark.parametrize("flag", ["--config", "--resume", "--out", "--data", "--algo", "--policy.model", "--reward"])
def test_values_of_the_command_line(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "file"
    folder.touch()
    value = f"{folder}/{EVIL}" if flag == "--out" else EVIL
    assert main.main([flag, value]) == 2
    assert printed(capsys)


FILES = {
    "ids": ([ROW | {"id": EVIL}, ROW | {"id": EVIL}], "a.jsonl"),
    "ids of unreadable golds": ([ROW | {"id": EVIL, "answer": ""}], "a.json"),
    "column names": ([{EVIL: "1", "problem": "1+1"}], "a.csv"),
    "column names of Parquet": ([{EVIL: "1", "problem": "1+1"}], "a.parquet"),
    "problems and answers": ([ROW | {"problem": EVIL, "answer": EVIL}], "a.parquet"),
    "the file's name": ([{"problem": "1+1"}], EVIL + ".jsonl"),
    "the file's name where rows have no id": ([{"problem": EVIL, "answer": EVIL}], EVIL + ".csv"),
    "the name of another format": ([ROW], EVIL + ".arrow"),
}


@pytest.mark.parametrize(("rows", "name"), FILES.values(), ids=FILES)
def test_problem_files(rows: list[dict], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / f"rows{Path(name).suffix}", rows).rename(tmp_path / name)
    data.main(["check", str(file), f"--data.eval={{x: {json.dumps(str(file))}}}"])
    assert printed(capsys)


def test_the_address_of_the_hub(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:9/{EVIL}")
    assert main.main(["--policy.model", "a/b"]) == 2
    assert printed(capsys)
