"""A run that is killed at any moment and resumed gives what an uninterrupted run gives, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from killing import Kill, Signal, run_fit
from safetensors.torch import load_file
from same_run import assert_same_run, deterministic_rows
from tiny_run import TinyRun, resume

from rloop_lightning.cli.main import main
from rloop_lightning.run.state import LoopState

# Two rounds of four rollout steps on the embedded policy; the filter is off so that there is something to consolidate.
DECODE = "rloop_lightning.engines.decoding:sample_tokens"
UPDATE = "torch.optim:AdamW.step"
NLL = "rloop_lightning.algorithms.rft:negative_log_likelihood"
RENAME = "os:replace"

# In the order in which they come, so that a run which was killed at one and resumed can be killed at any later one.
MOMENTS = {
    "evaluating the base": Kill(DECODE, 10),
    "generating, before the first checkpoint": Kill(DECODE, 40),
    "writing a checkpoint": Kill(RENAME, 1, "round-0/explore/checkpoints/step-000002.ckpt"),
    "optimizer step, after a checkpoint": Kill(UPDATE, 6),
    "writing a shard": Kill(RENAME, 1, "round-0/pool/step-000004.parquet"),
    "saving the explored policy": Kill(RENAME, 1, "round-0/explore/policy"),
    "writing the state after the exploration": Kill(RENAME, 1, "run/state.json"),
    "writing the expert set": Kill(RENAME, 1, "round-0/expert.parquet"),
    "writing a checkpoint of the consolidation": Kill(RENAME, 1, "round-0/consolidate/checkpoints/"),
    "saving the consolidated policy": Kill(RENAME, 1, "round-0/policy"),
    "optimizer step of the second consolidation": Kill(NLL, 3),
    "handing over": Kill(RENAME, 1, "final"),
}


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """With all that can take part in a resume: captures, evaluations inside, several updates a step."""
    return TinyRun.written(
        tmp_path_factory.mktemp("two-rounds"),
        algo={"updates_per_step": 2},
        loop={"rounds": 2, "checkpoint_every_n_steps": 2},
        capture={"every_n_steps": 2, "extra_rollouts": 2, "extra_problems": 4},
        eval={"every_n_steps": 2, "sets_inside": ["test"]},
    )


@pytest.fixture(scope="module")
def uninterrupted(two_rounds: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_rounds.finished(tmp_path_factory.mktemp("uninterrupted") / "run")


@pytest.mark.parametrize("first", [0, 1])
def test_a_run_killed_at_every_other_moment_resumes_to_the_same_bits(
    first: int, two_rounds: TinyRun, uninterrupted: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    begin, *later = list(MOMENTS)[first::2]
    code = two_rounds.fit_apart(out, log, MOMENTS[begin])
    assert code == -9, f"the run was not killed {begin}: {log.read_text()}"
    for moment in later:
        code = resume(out, log, MOMENTS[moment])
        assert code == -9, f"the run was not killed {moment}: {log.read_text()}"
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, uninterrupted)


def test_plain_reinforcement_learning_resumes_to_the_same_bits(two_rounds: TinyRun, tmp_path: Path) -> None:
    plain = ("--consolidate", "none")
    out, log = tmp_path / "run", tmp_path / "log"
    expected = two_rounds.finished(tmp_path / "uninterrupted", *plain)
    assert two_rounds.fit_apart(out, log, Kill(UPDATE, 11), arguments=plain) == -9, log.read_text()
    assert resume(out, log, Kill(UPDATE, 9)) == 0, log.read_text()  # of 16 updates, the checkpoint has 8
    ours, theirs = (load_file(run / "final" / "model.safetensors") for run in (out, expected))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert deterministic_rows(out) == deterministic_rows(expected)


def test_the_seconds_of_a_run_hold_what_a_phase_took_before_its_stop(tiny: TinyRun, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    for kill, phase in ((Kill(UPDATE, 4), "explore"), (Kill(NLL, 4), "consolidate")):
        code = resume(out, log, kill) if out.exists() else tiny.fit_apart(out, log, kill)
        assert code == -9, log.read_text()
        newest = max((out / "round-0" / phase / "checkpoints").glob("*.ckpt"))
        saved = torch.load(newest, weights_only=True)
        saved["callbacks"]["PhaseCheckpoint"]["seconds"] += 3600  # as if the machine had been slow
        torch.save(saved, newest)
    assert resume(out, log) == 0, log.read_text()
    assert 7200 < LoopState.load(out / "state.json").budget.seconds < 7800


def test_an_exploration_that_ends_by_its_tokens_resumes_to_the_same_bits(two_rounds: TinyRun, tmp_path: Path) -> None:
    limit = (
        "--consolidate",
        "none",
        "--loop.rounds",
        "1",
        "--loop.explore_tokens",
        "800",
        "--loop.explore_steps",
        "40",
    )
    out, log = tmp_path / "run", tmp_path / "log"
    expected = two_rounds.finished(tmp_path / "uninterrupted", *limit)
    assert 2 < LoopState.load(expected / "state.json").budget.rollout_steps < 40
    assert two_rounds.fit_apart(out, log, Kill(UPDATE, 5), arguments=limit) == -9, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, expected)


@pytest.mark.parametrize("consolidation", ["average", "distil", "rft"])
def test_a_complete_run_of_any_consolidation_is_resumed_without_a_warning(
    consolidation: str, tiny: TinyRun, tmp_path: Path
) -> None:
    """Only fine-tuning has an expert set to miss."""
    out, log = tmp_path / "run", tmp_path / "log"
    tiny.finished(out, "--consolidate", consolidation)
    assert resume(out, log) == 0, log.read_text()
    assert "missing" not in log.read_text()


def test_checkpoints_that_a_kill_left_behind_are_removed(
    two_rounds: TinyRun, uninterrupted: Path, tmp_path: Path
) -> None:
    """Between the state after a consolidation and the removal of its checkpoints."""
    out, log = tmp_path / "run", tmp_path / "log"
    assert two_rounds.fit_apart(out, log, Kill("rloop_lightning.run.loop:drop_checkpoints", 4)) == -9, log.read_text()
    assert list((out / "round-0" / "consolidate" / "checkpoints").glob("*.ckpt"))
    assert resume(out, log) == 0, log.read_text()
    assert_same_run(out, uninterrupted)


def test_going_back_to_a_phase_survives_a_kill(tiny: TinyRun, tmp_path: Path) -> None:
    """The phase does not go on from a checkpoint of before."""
    out, log, other = tmp_path / "run", tmp_path / "log", ("--algo.lr", "2e-4")
    assert tiny.fit_apart(out, log, Kill(RENAME, 1, "round-0/pool/step-000004.parquet")) == -9
    again = ["--resume", str(out), "--restart_from", "round-0/explore", *other]
    assert run_fit(again, log, Kill(RENAME, 1, "run/state.json")) == -9, log.read_text()
    assert run_fit(["--resume", str(out), *other], log) == 0, log.read_text()
    expected = tiny.finished(tmp_path / "at-once", *other)
    assert deterministic_rows(out) == deterministic_rows(expected)


def test_another_number_of_threads_is_told(tiny: TinyRun, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert tiny.fit_apart(out, log, Kill(RENAME, 1, "round-0/pool/step-000004.parquet")) == -9
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert main(["--resume", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    note = "resumed with threads 3 (before: 1): the results are not bit-identical to those of an uninterrupted run"
    assert f"\n- {note}\n" in (out / "results.md").read_text()


def test_a_stop_before_the_first_step_names_the_run_that_it_leaves(tiny: TinyRun, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    stop = Signal("rloop_lightning.cli.prepare:keep_record", 1, number=signal.SIGINT)  # the state is written
    assert tiny.fit_apart(out, log, stop, debug=False) == 130
    said = log.read_text()
    assert f"stopped by SIGINT before the first step; resume with: rloop-fit --resume {out}" in said
    assert "no run was started" not in said
    assert resume(out, log) == 0, log.read_text()


def test_a_stop_before_there_is_a_run_leaves_none(tiny: TinyRun, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    stop = Signal("rloop_lightning.cli.prepare:begin", 1, number=signal.SIGINT)
    assert tiny.fit_apart(out, log, stop, debug=False) == 130
    assert "no run was started" in log.read_text()
    assert tiny.fit_apart(out, log) == 0, log.read_text()
