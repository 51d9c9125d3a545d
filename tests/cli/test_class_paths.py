"""Parts and functions of a user's module that can't be imported or made: one line, whatever the module raises."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from killing import run_main

from rloop_lightning.system.imports import import_object

MODULES = {
    "cut": ("def reward(:\n", "SyntaxError: invalid syntax"),
    "lacking": ("import nonesuch_package\n", "No module named 'nonesuch_package'"),
    "leaving": ("raise SystemExit(3)\n", "SystemExit: 3"),
    "leaving_silently": ("raise SystemExit\n", "SystemExit"),
    "recursive": ("def again(): again()\nagain()\n", "RecursionError: maximum recursion depth exceeded"),
    "escaping": ("raise RuntimeError('\\x1b[2J\\nbad')\n", "RuntimeError: \\x1b[2J\\nbad"),
    "own_kind": ("class Own(BaseException): ...\nraise Own('mine')\n", "Own: mine"),
    "empty": ("", "module 'empty' has no attribute 'reward'"),
    "lazy": ("def __getattr__(name): raise RuntimeError('later')\n", "RuntimeError: later"),
}

CONSTRUCTORS = """
import sys
from rloop_lightning.rewards.base import Reward

class Base(Reward):
    def rewards(self, problems, texts):
        return [0.0] * len(texts)

class Fails(Base):
    def __init__(self): raise RuntimeError("no\\x1b[2J")

class Leaves(Base):
    def __init__(self): sys.exit(4)

class Silent(Base):
    def __init__(self): raise ValueError

class Refuses(Base):
    def __init__(self): raise ValueError("--reward.x\\x1b: too small")
"""


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_raises_on_import_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, message = MODULES[name]
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r".") as refusal:
        import_object(f"{name}.reward")
    assert str(refusal.value).startswith(f"can't import '{name}.reward': {message}")
    assert str(refusal.value).isprintable()
    sys.modules.pop(name, None)


def test_a_stop_signal_is_no_fault_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        import_object("interrupted.reward")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Fails", "--reward constructors.Fails: RuntimeError: no\\x1b[2J"),
        ("Leaves", "--reward constructors.Leaves: SystemExit: 4"),
        ("Silent", "--reward: ValueError"),
        ("Refuses", "--reward.x\\x1b: too small"),
    ],
)
def test_what_a_constructor_raises_is_one_line(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "constructors.py").write_text(CONSTRUCTORS)
    monkeypatch.syspath_prepend(tmp_path)
    log = tmp_path / "log"
    assert run_main(["--reward", f"constructors.{name}", "--out", str(tmp_path / "run")], log) == 2
    assert log.read_text() == f"rloop-fit: error: {message}\n"
    assert not (tmp_path / "run").exists()
