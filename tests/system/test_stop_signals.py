"""SIGTERM and Ctrl-C, sent to the whole process group: nothing is lost, nothing half-written, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from killing import Signal
from same_run import assert_same_run
from tiny_run import TinyRun, resume

from rloop_lightning.cli.commands import rloop_fit
from rloop_lightning.errors import Stopped
from rloop_lightning.rewards.math import MathReward
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.types import Problem

UPDATE = "torch.optim:AdamW.step"
RENAME = "os:replace"
SHARD = "round-0/pool/step-000002.parquet"
TERM, INT = signal.SIGTERM, signal.SIGINT


@dataclass(frozen=True)
class Case:
    """A signal, the exit code, what is said, and the checkpoints that are left."""

    signal: Signal
    code: int
    said: str
    checkpoints: tuple[str, ...] = ()


CASES = {
    "SIGTERM in an optimizer step": Case(
        Signal(UPDATE, 2, number=TERM),
        143,
        "stopped by SIGTERM; the checkpoint {out}/round-0/explore/checkpoints/step-000002.ckpt is saved",
        ("round-0/explore/checkpoints/step-000002.ckpt",),
    ),
    "Ctrl-C while a shard is written": Case(
        Signal(RENAME, 1, SHARD, number=INT),
        130,
        "stopped by SIGINT; the checkpoint {out}/round-0/explore/checkpoints/step-000002.ckpt is saved",
        ("round-0/explore/checkpoints/step-000002.ckpt",),
    ),
    "SIGTERM twice while a shard is written": Case(
        Signal(RENAME, 1, SHARD, number=TERM, times=2),
        143,
        "stopped by SIGTERM; what came after the newest checkpoint is repeated",
    ),
    "Ctrl-C in an evaluation": Case(
        Signal("rloop_lightning.evaluation.evaluator:derive_seed", 2, number=INT),
        130,
        "stopped by SIGINT; what came after the newest checkpoint is repeated",
    ),
    "SIGTERM in the last optimizer step of a phase": Case(
        Signal(UPDATE, 4, number=TERM), 143, "stopped by SIGTERM; what came after the newest checkpoint is repeated"
    ),
    "SIGTERM while the policy is handed over": Case(
        Signal(RENAME, 1, "final", number=TERM), 143, "stopped by SIGTERM; the run is complete"
    ),
}


@pytest.fixture(scope="module")
def unsaved(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """One that saves no checkpoint unless it is told to stop."""
    return TinyRun.written(tmp_path_factory.mktemp("tiny"), loop={"checkpoint_every_n_steps": 0})


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_run_resumes_to_the_same_bits(name: str, unsaved: TinyRun, finished: Path, tmp_path: Path) -> None:
    case, out, log = CASES[name], tmp_path / "run", tmp_path / "log"
    assert unsaved.fit_apart(out, log, case.signal, debug=False) == case.code, log.read_text()
    said = log.read_text()
    assert f"rloop-fit: {case.said.format(out=out)}; resume with: rloop-fit --resume {out}\n" in said
    assert ("a second signal stops at once" in said) == ("evaluation" not in name)
    assert "Traceback" not in said
    assert not list(out.rglob("*.partial"))
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.ckpt")) == list(case.checkpoints)
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, finished)


def test_a_signal_before_the_run_leaves_nothing(unsaved: TinyRun, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    signal = Signal("rloop_lightning.run.parts:Parts.rendered", 1, number=TERM)
    assert unsaved.fit_apart(out, log, signal, debug=False) == 143
    assert log.read_text().endswith("\nrloop-fit: stopped by SIGTERM; no run was started\n")
    assert "Traceback" not in log.read_text()
    assert not out.exists()


def test_a_signal_while_the_command_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupt:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "rloop_lightning.cli.main":
                os.kill(os.getpid(), INT)

    monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "rloop_lightning.cli.main", raising=False)
    assert rloop_fit() == 130
    assert capsys.readouterr().err == "\nrloop-fit: stopped by SIGINT; no run was started\n"


def test_reward_workers_take_no_signal_of_the_group_and_lose_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that a signal ended would score the answer that it was at as wrong."""
    reward, problem = MathReward(workers=2), Problem("p", "?", "1/2")
    texts = [rf"\boxed{{{n}/{2 * n}}}" for n in range(1, 40)]

    class UnderFire(subprocess.Popen[bytes]):
        """A process that signals are sent to as it starts."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            for number in (INT, TERM):
                self.send_signal(number)

    monkeypatch.setattr(subprocess, "Popen", UnderFire)
    assert reward.rewards([problem] * len(texts), texts) == [1.0] * len(texts)
    pids = reward.pool.pids()
    for pid in pids:
        os.kill(pid, INT)
        os.kill(pid, TERM)
    assert reward.rewards([problem], [r"\boxed{50/100}"]) == [1.0]
    assert reward.pool.pids() == pids
    assert reward.metrics()["crashed"] == 0
    reward.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_the_first_signal_waits_for_a_check_and_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(TERM)
    with StopSignals() as stop:
        with stop.deferred():
            stop.check()
            for _ in range(2):  # at the same moment: one request
                os.kill(os.getpid(), TERM)
            assert stop.noted
            monkeypatch.setattr("rloop_lightning.system.signals.ONE_REQUEST_S", 0.0)
            with pytest.raises(Stopped) as noted, stop.at_once():
                raise AssertionError("not reached")
            assert noted.value.exit_code == 143
            with pytest.raises(Stopped) as second:
                os.kill(os.getpid(), INT)
            assert second.value.exit_code == 130
        with pytest.raises(Stopped):
            os.kill(os.getpid(), TERM)
    assert signal.getsignal(TERM) is before
