"""Runs on an engine that generates the next step in a thread while the trainer updates."""

from __future__ import annotations

import itertools
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from killing import Kill, Signal
from same_run import assert_same_run
from tiny_run import TinyRun, resume

from rloop_lightning.callbacks import bar, progress
from rloop_lightning.run.metrics_csv import read_metrics

UPDATE = "torch.optim:AdamW.step"


def written(folder: Path, engine: str, **loop: Any) -> TinyRun:
    return TinyRun.written(
        folder,
        engine={"name": f"copied_engine.{engine}", "max_new_tokens": 24},
        loop={"staleness": 1, **loop},
        eval={"every_n_steps": 2},
    )


def test_a_run_beside_gives_what_a_run_between_gives_also_when_killed(tmp_path: Path) -> None:
    """Evaluations in between, the weights of a step, and the state of a checkpoint do not depend on the thread."""
    run = written(tmp_path, "CopiedEngine")
    expected = run.finished(tmp_path / "between", "--engine", "torch", "--engine.max_new_tokens", "24")
    assert_same_run(run.finished(tmp_path / "beside"), expected)
    out, log = tmp_path / "killed", tmp_path / "log"
    assert run.fit_apart(out, log, Kill(UPDATE, 3)) == -signal.SIGKILL, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_run_in_the_middle_of_a_generation(tmp_path: Path, number: int) -> None:
    log = tmp_path / "log"
    strike = Signal(UPDATE, 1, number=number, times=2)
    assert written(tmp_path, "EndlessEngine").fit_apart(tmp_path / "run", log, strike) == 128 + number, log.read_text()


def test_an_error_of_an_update_ends_a_run_in_the_middle_of_a_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no such device")

    monkeypatch.setattr("torch.optim.AdamW.step", broken)
    assert written(tmp_path, "EndlessEngine").fit(tmp_path / "run") == 1
    assert "no such device" in capsys.readouterr().err
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rollouts")]


def test_every_line_of_a_run_beside_is_true_and_drawn_by_the_main_thread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 60.0)
    monkeypatch.setattr(bar, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(progress, "perf_counter", lambda: float(next(clock)))
    drawn: set[threading.Thread] = set()
    show = bar.Bar._show
    monkeypatch.setattr(bar.Bar, "_show", lambda self: (drawn.add(threading.current_thread()), show(self)))
    out = tmp_path / "run"
    run = written(tmp_path, "CopiedEngine", explore_steps=4)
    assert run.fit(out, "--consolidate=none", "--eval.every_n_steps=3", "--loop.show_completions=0") == 0
    explored = [line for line in capsys.readouterr().err.splitlines() if line.startswith("round 1/1 explore ")]
    assert drawn == {threading.main_thread()}
    rows = [row for row in read_metrics(out / "metrics.csv") if row["phase"] == "explore"]
    assert len(rows) == 4
    # Step 1 alone is followed by no evaluation or one that is due: what the thread generates is none.
    assert {re.search(r" (\d)/4 ", line)[1] for line in explored if "evaluation" in line} == {"2"}
    for line in explored:
        if "updating" in line:
            assert "sampling" not in line
