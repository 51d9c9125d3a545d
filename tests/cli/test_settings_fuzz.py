"""Settings files of any content are accepted or refused: no traceback, no hang, nothing written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from mutating import mutated_bytes, mutated_values, seeds, watchdog
from tiny_run import TINY

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.presets import preset_folder

WORDS = (
    *(b"&a ", b"*a", b"<<: *a", b"loop: *a\n", b"!!python/object/apply:os.system [x]"),
    *(b"!!binary ", b"!!timestamp 2024-01-01", b"!!set ", b"2024-01-01", b"~", b"? ", b"- "),
    *(b"0x" + b"f" * 5000, b"1" + b":59" * 500, b"9" * 5000, b".nan", b"-.inf", b"1e999"),
    *(b"[" * 60, b"{" * 60, b"[[", b"]", b"{", b"}", b": ", b"\n", b"\n  ", b"\t", b"'", b'"', b"|\n", b">\n", b"#"),
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1b[31m", b"\xe2\x80\xae", b"---\n", b"%YAML 1.1\n---\n", b"="),
    *(b"no.such.Thing", b"algo: ", b"trainer: {callbacks: ", b"class_path: ", b"init_args: ", b"reward: no.such"),
)

TRAINER = {
    "callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "x"}}],
    "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}},
    "precision": "32-true",
    "devices": 1,
}
FILES = {"name": "files", "path": "train.jsonl", "eval": {"a": "b.jsonl"}, "chat_template_kwargs": {"thinking": True}}
WEIGHTED = {"name": "weighted", "rewards": {"correct": {"class_path": "rloop_lightning.rewards.math.MathReward"}}}


@pytest.fixture(scope="module")
def originals() -> list[dict]:
    preset = yaml.safe_load((preset_folder() / "countdown.yaml").read_text())
    plain = {group: dict(values) for group, values in TINY.items()}
    return [plain, preset, {**plain, "trainer": TRAINER, "reward": WEIGHTED}, {**plain, "data": FILES}]


def outcome(content: bytes, folder: Path, *, of_a_run: bool = False) -> str:
    """What the command line says of a settings file; empty if it takes it."""
    file = folder / "config.yaml"
    file.write_bytes(content)
    given = ["--resume", str(folder)] if of_a_run else ["--config", str(file), "--out", str(folder / "run")]
    before = sorted(folder.rglob("*"))
    try:
        with watchdog(repr(content[:2000])):
            RLoopCLI(given)
    except UsageError as error:
        said = str(error) or "a refusal without a reason"
    else:
        said = ""
    assert sorted(folder.rglob("*")) == before
    return said


def test_values_of_any_kind_anywhere(originals: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in seeds(25):
        chance = random.Random(seed)
        settings = mutated_values(chance.choice(originals), chance)
        outcome(yaml.safe_dump(settings, allow_unicode=chance.random() < 0.5).encode(errors="replace"), tmp_path)


def test_texts_with_any_bytes(originals: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in seeds(25):
        chance = random.Random(seed)
        text = yaml.safe_dump(chance.choice(originals)).encode()
        outcome(mutated_bytes(text, chance, WORDS), tmp_path)


def test_settings_of_a_run(
    originals: list[dict], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state.json").write_bytes((finished / "state.json").read_bytes())
    whole = yaml.safe_load((finished / "config.yaml").read_text())
    for seed in seeds(10):
        chance = random.Random(seed)
        text = yaml.safe_dump(mutated_values(whole, chance)).encode(errors="replace")
        outcome(mutated_bytes(text, chance, WORDS) if chance.random() < 0.5 else text, tmp_path, of_a_run=True)
