"""Cells as processes: what begins, what goes on, what fails, and what a signal and a launcher do.

The command of a run is a shell script here, which copies a complete run or does something else.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_cells import complete

from rloop_lightning.errors import Stopped
from rloop_lightning.run import cells
from rloop_lightning.run.cell_runner import CellRunner, Outcome
from rloop_lightning.run.cells import Launch
from rloop_lightning.run.state import LoopState
from rloop_lightning.run.study import Arm, BudgetRule, Cell, Study
from rloop_lightning.system.lock import FolderLock
from rloop_lightning.system.signals import StopSignals

LOOP = {"loop": {"rounds": 2, "explore_steps": 5}}

# $RUNS has a line for each run; $COMPLETE is copied to the run folder.
FIT = """
echo "$@" >> "$RUNS"
while [ $# -gt 0 ]; do
  case "$1" in --out|--resume) out="$2" ;; esac
  shift
done
case "$out" in */fails/*) echo "rloop-fit: error: no \033[31mluck"; exit 1 ;; esac
{body}
mkdir -p "$out"
cp -r "$COMPLETE/." "$out"
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """Makes a study whose runs are a script's."""

    def make(
        *names: str,
        seeds: tuple[int, ...] = (0,),
        budget: BudgetRule = "rollout_steps",
        body: str = "",
        out: str = "study",
    ) -> Study:
        fit = tmp_path / "fit.sh"
        fit.write_text(FIT.replace("{body}", body))
        template = Study(tmp_path / "template", [Arm("one", {}, LOOP)], [0]).cells[0]
        complete(template, {"round 1 explored": {"test": {"p": 1}}}, selected="round 1 explored", tokens=1000)
        monkeypatch.setattr(cells, "FIT", ("/bin/sh", str(fit)))
        monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
        monkeypatch.setenv("COMPLETE", str(template.run.out))
        study = Study(tmp_path / out, [Arm(name, {}, LOOP) for name in names], seeds, budget)
        study.write()
        return study

    return make


def run(study: Study, launch: Launch | None = None, jobs: int = 1, tell: list[str] | None = None) -> list[str]:
    """What became of the cells."""
    told: list[str] = [] if tell is None else tell
    ended: list[Outcome] = []
    runner = CellRunner(study, launch or Launch(), jobs, tell=told.append, ended=ended.append)
    with StopSignals() as signals:
        outcomes = runner.run(signals)
    assert list(outcomes) == ended
    return [f"{one.cell}: {one.kind} {one.reason}".strip() for one in outcomes]


def started(folder: Path) -> list[list[str]]:
    """The arguments of each run."""
    path = folder / "runs"
    return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_cells_run_one_after_the_other_and_complete_ones_not_again(made: Callable[..., Study], tmp_path: Path) -> None:
    study = made("a", "b c", seeds=(0, 7))
    assert run(study) == [
        "a, seed 0: complete",
        "b c, seed 0: complete",
        "a, seed 7: complete",
        "b c, seed 7: complete",
    ]
    assert started(tmp_path)[1] == [
        *("--config", str(study.out / "b-c" / "settings.yaml")),
        *("--seed_everything", "0", "--out", str(study.out / "b-c" / "seed-0")),
    ]
    assert run(study) == []
    assert len(started(tmp_path)) == 4


def test_a_cell_that_has_begun_is_resumed(made: Callable[..., Study], tmp_path: Path) -> None:
    study = made("a")
    cell = study.cells[0]
    LoopState("id", phase="explore", machine={"threads": 3}).save(cell.run.state)
    told: list[str] = []
    assert run(study, Launch(threads=1), tell=told) == ["a, seed 0: complete"]
    assert started(tmp_path) == [["--resume", str(cell.run.out)]]
    assert "goes on" in told[0]
    assert "export OMP_NUM_THREADS=3" in cell.script.read_text()  # its bits would change with another number


def test_a_cell_that_fails_is_named_and_does_not_stop_the_others(made: Callable[..., Study]) -> None:
    study = made("a", "fails", "b")
    assert run(study) == [
        "a, seed 0: complete",
        "fails, seed 0: failed exit code 1: no \\x1b[31mluck",
        "b, seed 0: complete",
    ]
    assert run(study) == ["fails, seed 0: failed exit code 1: no \\x1b[31mluck"]  # and is tried again


def test_a_cell_that_was_killed_or_can_not_start_is_named(made: Callable[..., Study]) -> None:
    study = made("a", "b", "c", body='echo working; case "$out" in */b/*) kill -9 $$ ;; esac')
    study.cell(study.arms[0], 0).log.mkdir()
    found = run(study)
    assert "Is a directory" in found[0]
    assert found[1:] == ["b, seed 0: failed killed by SIGKILL: working", "c, seed 0: complete"]


def test_jobs_run_at_the_same_time_with_their_share_of_the_threads(made: Callable[..., Study], tmp_path: Path) -> None:
    wait = 'echo "$OMP_NUM_THREADS" >> "$RUNS.threads"; while [ ! -e "$RUNS.go" ]; do sleep 0.02; done'
    study = made("a", "b", "c", body=wait)
    threads = tmp_path / "runs.threads"

    def release() -> None:
        while not (threads.exists() and len(threads.read_text().split()) == 2):
            time.sleep(0.02)
        (tmp_path / "runs.go").touch()

    thread = threading.Thread(target=release)
    thread.start()
    assert sorted(run(study, Launch(threads=4), jobs=2)) == [f"{name}, seed 0: complete" for name in "abc"]
    thread.join()
    assert threads.read_text().split() == ["4", "4", "4"]


def test_a_signal_is_passed_on_and_the_study_stops(made: Callable[..., Study], tmp_path: Path) -> None:
    wait = 'trap "echo saved >> $RUNS; exit 143" TERM; touch "$RUNS.waits"; while true; do sleep 0.05; done'
    study = made("a", "b", body=wait)

    def interrupt() -> None:
        while not (tmp_path / "runs.waits").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped):
        run(study)
    thread.join()
    assert len(started(tmp_path)) == 2  # the run and what it said; the second cell did not begin
    assert started(tmp_path)[1] == ["saved"]


def test_a_cell_gets_the_signal_when_the_study_was_killed(made: Callable[..., Study], tmp_path: Path) -> None:
    study = made("a")
    cell = study.cells[0]
    cell.script.parent.mkdir(parents=True, exist_ok=True)
    cell.script.write_text('trap "touch $RUNS.saved; exit" TERM; touch "$RUNS.waits"; while true; do sleep 0.05; done')
    launched = Launch().arguments(cell)
    parent = (
        "import subprocess, os, time; "
        f"words = {launched!r}; words[words.index({str(os.getpid())!r})] = str(os.getpid()); "
        "subprocess.Popen(words, start_new_session=True); time.sleep(1000)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    while not (tmp_path / "runs.waits").exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    while not (tmp_path / "runs.saved").exists():
        time.sleep(0.02)


def test_a_cell_in_use_is_waited_for(made: Callable[..., Study], tmp_path: Path) -> None:
    study = made("a", "b")
    cell = study.cells[0]
    cell.run.out.mkdir(parents=True)
    lock = FolderLock(cell.run.lock)
    lock.acquire()

    def release() -> None:
        while len(started(tmp_path)) < 1:
            time.sleep(0.02)
        complete(cell, {"round 1 explored": {"test": {"p": 1}}}, selected="round 1 explored")
        lock.release()

    thread = threading.Thread(target=release)
    thread.start()
    told: list[str] = []
    assert run(study, tell=told) == ["b, seed 0: complete", "a, seed 0: complete"]
    thread.join()
    assert len(started(tmp_path)) == 1  # the other process has completed it
    assert any("in use" in line for line in told)


def test_a_launcher_starts_the_script_of_a_cell(made: Callable[..., Study], tmp_path: Path) -> None:
    study = made("a b", seeds=(3,))
    cell = study.cells[0]
    assert Launch("srun -J {cell} -o {log} {command}").arguments(cell) == [
        *("srun", "-J", "a-b-seed-3", "-o", str(cell.log), str(cell.script)),
    ]
    assert Launch("sbatch --output={log} -o{log} --job-name={cell} --wrap='{command}'").arguments(cell) == [
        *("sbatch", f"--output={cell.log}", f"-o{cell.log}", "--job-name=a-b-seed-3", f"--wrap={cell.script}"),
    ]
    assert run(study, Launch("sh -c 'exec {command}'", threads=1)) == ["a b, seed 3: complete"]
    assert "OMP_NUM_THREADS" not in cell.script.read_text()  # the launcher knows its machines


def test_a_path_with_a_space_is_one_word_for_the_shell_of_a_launcher(
    made: Callable[..., Study], tmp_path: Path
) -> None:
    study = made("a", out="my study")
    launch = Launch("sh -c '{command}; echo done > {log}.shell'")
    assert run(study, launch) == ["a, seed 0: complete"]
    assert study.cells[0].log.with_name("seed-0.log.shell").read_text() == "done\n"
    assert launch.arguments(study.cells[0])[2] == f"'{study.cells[0].script}'; echo done > '{study.cells[0].log}'.shell"
    (word,) = Launch("--output={log}").arguments(study.cells[0])
    assert word == f"--output={study.cells[0].log}"


def test_a_launcher_that_only_submits_is_told_apart_from_a_failure(made: Callable[..., Study], tmp_path: Path) -> None:
    study = made("a")
    assert run(study, Launch("echo submitted {command}")) == ["a, seed 0: submitted"]
    assert study.cells[0].log.read_text().split()[:1] == ["submitted"]
    assert run(study, Launch("sh -c 'echo rloop-fit: error: no queue; exit 3' {command}")) == [
        "a, seed 0: failed exit code 3: no queue"
    ]
    assert run(study) == ["a, seed 0: complete"]


def test_the_script_of_a_cell_may_be_run_again_by_hand(made: Callable[..., Study], tmp_path: Path) -> None:
    study = made("it's", seeds=(0,))
    cell: Cell = study.cells[0]
    run(study)
    subprocess.run([str(cell.script)], check=True, cwd="/")
    assert started(tmp_path)[1] == ["--resume", str(cell.run.out)]


def test_an_equal_number_of_tokens_is_that_of_the_first_arm(made: Callable[..., Study], tmp_path: Path) -> None:
    study = made("a", "b", seeds=(0, 1), budget="tokens")
    run(study)
    by_out = {line[line.index("--out") + 1]: line for line in started(tmp_path)}
    for seed in study.seeds:
        assert len(by_out[str(study.out / "a" / f"seed-{seed}")]) == 6
        # 1000 tokens in two rounds; ten times the rollout steps are enough for any arm that is not much worse
        options = by_out[str(study.out / "b" / f"seed-{seed}")][6:]
        assert options == ["--loop.explore_tokens=500", "--loop.explore_steps=50"]


def test_cells_wait_for_the_tokens_of_a_submitted_one(made: Callable[..., Study], tmp_path: Path) -> None:
    study = made("a", "b", "c", budget="tokens")
    launch = Launch("echo submitted {command}")
    reason = "its budget is the tokens of a, seed 0, which was submitted"
    assert run(study, launch) == [
        "a, seed 0: submitted",
        f"b, seed 0: waiting {reason}",
        f"c, seed 0: waiting {reason}",
    ]
    subprocess.run([str(study.cells[0].script)], check=True)  # the job
    assert run(study, launch) == ["b, seed 0: submitted", "c, seed 0: submitted"]


def test_without_the_first_arm_there_is_no_budget_of_tokens(made: Callable[..., Study], tmp_path: Path) -> None:
    study = made("fails", "b", budget="tokens")
    assert run(study)[1] == "b, seed 0: failed its budget is the tokens of fails, seed 0, which is not complete"
    assert len(started(tmp_path)) == 1
