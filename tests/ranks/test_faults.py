"""A rank that fails, is killed or hangs ends the job: on all ranks, with one message that names it."""

from __future__ import annotations

import errno
import re
import signal
from pathlib import Path

import pytest
import torch
from killing import Fault, FullDisk, Kill, Signal
from rank_jobs import Hangs, Job, Raises, one_error, run_ranks
from same_run import assert_same_run
from tiny_run import TinyRun

pytestmark = pytest.mark.timeout(600)  # a busy machine

GENERATE = "rloop_lightning.rollouts.sampler:GroupSampler.generate_share"
UPDATE = "rloop_lightning.algorithms.policy_module:PolicyModule.update"
SIZE = 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun.written(
        tmp_path_factory.mktemp("tiny"),
        reward={"name": "reward_functions.boxed"},
        loop={"explore_steps": 3, "problems_per_step": 3, "rollouts_per_problem": 4},
        eval={"max_problems": 1},
    )


@pytest.fixture(scope="module")
def whole(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    job = start(tiny, folder)
    assert job.codes == [0, 0], job.said
    return folder / "run"


def start(tiny: TinyRun, folder: Path, rank: int = 0, fault: Fault | None = None, *options: str, **given: str) -> Job:
    faults = {rank: fault} if fault else {}
    arguments = ["--config", str(tiny.config), "--out", str(folder / "run"), *options]
    return run_ranks(SIZE, arguments, folder / "logs", faults=faults, environment=given)


def resumed(folder: Path, rank: int = 0, fault: Fault | None = None) -> Job:
    faults = {rank: fault} if fault else {}
    return run_ranks(SIZE, ["--resume", str(folder / "run")], folder / "resumed", faults=faults)


def test_a_rank_killed_while_the_run_is_prepared_ends_all(tiny: TinyRun, whole: Path, tmp_path: Path) -> None:
    job = start(tiny, tmp_path, 1, Kill("rloop_lightning.system.ranks:Ranks.receive", 1))
    assert "rank 1 was killed, or its machine can't be reached" in one_error(job)
    again = resumed(tmp_path)
    assert again.codes == [0, 0], again.said
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(("rank", "moment"), [(0, UPDATE), (1, GENERATE)])
def test_a_killed_rank_ends_all_and_a_resume_gives_the_same_bits(
    rank: int, moment: str, tiny: TinyRun, whole: Path, tmp_path: Path
) -> None:
    call = {GENERATE: 3, UPDATE: 2}[moment]
    job = start(tiny, tmp_path, rank, Kill(moment, call))
    assert f"rank {rank} was killed, or its machine can't be reached" in one_error(job)
    assert job.codes[rank] == -signal.SIGKILL
    again = resumed(tmp_path)
    assert again.codes == [0, 0], again.said
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("moment", "error", "expected"),
    [
        (GENERATE, ValueError("no such answer"), "ValueError: no such answer"),
        (UPDATE, torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (UPDATE, KeyError(), "KeyError"),
    ],
)
def test_the_error_of_one_rank_is_the_jobs(
    moment: str, error: Exception, expected: str, tiny: TinyRun, tmp_path: Path
) -> None:
    job = start(tiny, tmp_path, 1, Raises(moment, 2, error=error))
    assert re.search(rf"rank 1 \(process \d+ on .*\): {expected}$", one_error(job), re.MULTILINE)
    assert job.codes == [1, 1]
    assert job.logs[1] == ""


@pytest.mark.parametrize("moment", [GENERATE, UPDATE])
def test_the_error_of_rank_0_ends_the_others(moment: str, tiny: TinyRun, tmp_path: Path) -> None:
    """While they generate, or wait in a collective of an update."""
    job = start(tiny, tmp_path, 0, Raises(moment, 2, error=OSError(errno.EIO, "broken", "a file")))
    assert "broken: 'a file'" in one_error(job)
    assert job.codes == [1, 1]


def test_a_full_disk_is_told_and_a_resume_gives_the_same_bits(tiny: TinyRun, whole: Path, tmp_path: Path) -> None:
    job = start(
        tiny, tmp_path, 0, FullDisk("lightning:Trainer.save_checkpoint", 2, bytes=100_000)
    )  # the log is smaller
    error = one_error(job)
    assert str(tmp_path / "run") in error
    assert "fix the cause, then resume with" in error
    again = resumed(tmp_path)
    assert again.codes == [0, 0], again.said
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("moment", [GENERATE, UPDATE])
def test_a_rank_that_hangs_is_named_with_the_stacks_of_all(moment: str, tiny: TinyRun, tmp_path: Path) -> None:
    job = start(tiny, tmp_path, 1, Hangs(moment, 2), RLOOP_RANK_TIMEOUT_S="12")
    assert re.search(r"rank 1 .* has made no progress for \d+ s; the stacks of all ranks are above", job.said)
    assert job.codes == [1, 1]
    assert "rank_jobs.py" in job.logs[1]  # where it sleeps
    assert "distributed" in job.logs[0]


def test_sigterm_ends_all_and_a_resume_gives_the_same_bits(tiny: TinyRun, whole: Path, tmp_path: Path) -> None:
    job = start(tiny, tmp_path, 0, Signal(UPDATE, 2))
    assert job.codes == [143, 143], job.said
    assert "resume with: rloop-fit --resume" in job.logs[0]
    assert "Traceback" not in job.said
    again = resumed(tmp_path)
    assert again.codes == [0, 0], again.said
    assert_same_run(tmp_path / "run", whole)
