"""What a resume may change, through the command line: more rounds, other sizes of later rounds, a phase repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from same_run import assert_same_run, deterministic_rows
from tiny_run import TinyRun

from rloop_lightning.cli.main import main


@pytest.fixture
def complete(finished: Path, tmp_path: Path) -> Path:
    """A complete run of one round, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def resume(run: Path, *arguments: str) -> int:
    return main(["--resume", str(run), *arguments])


def weights(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def same(ours: dict, theirs: dict) -> bool:
    return all(ours[name].equal(theirs[name]) for name in theirs)


def shards(run: Path, round: int) -> list[str]:
    return sorted(path.stem for path in (run / f"round-{round}" / "pool").glob("*.parquet"))


def settings(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def test_a_complete_run_goes_on_with_more_rounds_as_if_it_had_begun_with_them(
    tiny: TinyRun, complete: Path, tmp_path: Path
) -> None:
    assert resume(complete, "--loop.rounds=2") == 0
    assert tiny.fit(tmp_path / "at-once", "--loop.rounds=2") == 0
    results = complete / "results.md"
    note = "\n- resumed with --loop.rounds 2 (before: 1)\n"
    assert note in results.read_text()
    results.write_text(results.read_text().replace(note, ""))
    assert_same_run(complete, tmp_path / "at-once")
    assert settings(complete)["loop"]["rounds"] == 2
    assert resume(complete) == 0  # the settings are those of today


def test_rounds_that_have_not_begun_may_be_shorter(complete: Path) -> None:
    assert resume(complete, "--loop.rounds=2", "--loop.explore_steps=2", "--algo.lr=2e-4") == 0
    assert shards(complete, 0) == [f"step-{step:06d}" for step in (1, 2, 3, 4)]
    assert shards(complete, 1) == [f"step-{step:06d}" for step in (1, 2)]
    said = (complete / "results.md").read_text()
    for change in ("--loop.rounds 2 (before: 1)", "--loop.explore_steps 2 (before: 4)", "--algo.lr 0.0002 (before"):
        assert change in said
    assert json.loads((complete / "state.json").read_text())["explore_steps"] == [4, 2]
    rates = {row["round"]: row["train/lr"] for row in deterministic_rows(complete) if row["phase"] == "explore"}
    assert rates == {0: 1e-4, 1: 2e-4}


def test_going_back_to_a_phase_repeats_it_with_other_settings(tiny: TinyRun, complete: Path, tmp_path: Path) -> None:
    """The phases before it stay, and the result is that of a run with the new settings from there on."""
    assert resume(complete, "--restart_from=round-0/consolidate", "--consolidate.epochs=1") == 0
    assert tiny.fit(tmp_path / "at-once", "--consolidate.epochs=1") == 0
    assert same(weights(complete / "final"), weights(tmp_path / "at-once" / "final"))
    assert deterministic_rows(complete) == deterministic_rows(tmp_path / "at-once")

    assert resume(complete, "--restart_from=round-0/explore", "--algo.lr=2e-4", "--loop.explore_steps=3") == 0
    assert tiny.fit(tmp_path / "again", "--consolidate.epochs=1", "--algo.lr=2e-4", "--loop.explore_steps=3") == 0
    assert shards(complete, 0) == [f"step-{step:06d}" for step in (1, 2, 3)]
    assert same(weights(complete / "final"), weights(tmp_path / "again" / "final"))


def test_going_back_without_a_change_gives_the_same_bits(finished: Path, complete: Path) -> None:
    assert resume(complete, "--restart_from=round-0/explore") == 0
    assert_same_run(complete, finished)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--algo.lr=1e-5"], "--resume: --algo.lr: no explore phase is left; add rounds with --loop.rounds"),
        (["--filter.max_success_rate=0.5"], "no consolidate phase is left; add rounds with --loop.rounds"),
        (["--loop.explore_steps=9"], "--loop.explore_steps 9: all 1 rounds have begun; add some with --loop.rounds"),
        (["--loop.rollouts_per_problem=9"], "the run is complete; add rounds with --loop.rounds"),
        (["--engine.temperature=0.5"], "--engine.temperature was 1.0 when the run started and is 0.5 now"),
        (["--algo=grpo"], "--algo.name was 'dapo' when the run started and is 'grpo' now"),
        (["--restart_from=round-1/explore"], "take a phase that has begun: round-0/explore, round-0/consolidate"),
        (["--restart_from=elsewhere"], "--restart_from elsewhere: take a phase that has begun"),
    ],
)
def test_what_can_have_no_effect_is_refused(
    finished: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "config.yaml").read_bytes()
    assert resume(finished, *arguments) == 2
    assert said in capsys.readouterr().err
    assert (finished / "config.yaml").read_bytes() == before


def test_another_consolidation_is_one_change_whatever_fields_it_has(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(finished, "--consolidate=none") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--consolidate.name was 'rft' when the run started and is 'none' now" in line


def test_a_policy_that_somebody_deleted_can_be_made_again(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = weights(complete / "final")
    shutil.rmtree(complete / "round-0" / "policy")
    shutil.rmtree(complete / "final")
    assert resume(complete) == 2
    said = capsys.readouterr().err
    assert f"selects round 1 consolidated, whose policy is missing, {complete / 'round-0' / 'policy'}" in said
    assert "make it again with --restart_from round-0/consolidate" in said
    assert resume(complete, "--restart_from=round-0/consolidate") == 0
    assert same(weights(complete / "final"), before)


def test_restart_from_needs_a_run(tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.fit(tmp_path / "run", "--restart_from=round-0/explore") == 2
    assert "--restart_from needs --resume RUN" in capsys.readouterr().err


def test_rounds_that_have_begun_stay(tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert tiny.fit(out, "--loop.rounds=2", "--loop.explore_steps=2") == 0
    assert resume(out, "--loop.rounds=1") == 2
    assert "--loop.rounds 1: 2 rounds have begun; take at least 2" in capsys.readouterr().err


def test_one_exploration_without_consolidation_keeps_its_length(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert tiny.fit(out, "--loop.rounds=2", "--loop.explore_steps=1", "--consolidate=none") == 0
    assert resume(out, "--loop.rounds=3") == 2
    said = "--loop.rounds: without consolidation a run is one exploration, which began with 2 rollout steps"
    assert said in capsys.readouterr().err


def test_a_phase_in_progress_keeps_its_settings(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exploration ends with an error in its second step. Its learning rate is part of its checkpoints."""
    out, dapo = tmp_path / "run", "--algo.dynamic_sampling=true"
    stop = ["--loop.on_too_few_groups=stop", "--algo.max_generation_batches=1", "--loop.rollouts_per_problem=8"]
    few = ["--loop.problems_per_step=3", "--seed_everything=5"]  # with this seed, only the first step has its groups
    assert tiny.fit(out, dapo, *stop, *few) == 1
    said = capsys.readouterr().err
    assert "problems gave a group with both right and wrong rollouts; the step needs 3" in said
    assert f"rloop-fit --resume {out} " in said
    assert "--loop.on_too_few_groups end_phase" in said
    (checkpoint,) = (out / "round-0/explore/checkpoints").glob("*")
    assert checkpoint.name == "step-000001.ckpt"

    assert resume(out, "--algo.lr=1e-5") == 2
    said = capsys.readouterr().err
    assert "--algo.lr takes effect at the beginning of a phase, and round-0/explore has done 1 training steps" in said
    assert "--restart_from round-0/explore" in said

    assert resume(out) == 1  # nothing is different now
    end = shutil.copytree(out, tmp_path / "end")
    assert resume(end, "--loop.on_too_few_groups=end_phase") == 0
    note = "round 1/1 explore ended after 1 of 4 rollout steps: rollout step 2: only"
    assert note in (end / "results.md").read_text()
    assert shards(end, 0) == ["step-000001", "unused-000002"]
    assert (end / "final" / "model.safetensors").exists()

    more = shutil.copytree(out, tmp_path / "more")
    assert resume(more, "--algo.max_generation_batches=50") == 0
    assert shards(more, 0) == [f"step-{step:06d}" for step in (1, 2, 3, 4)]

    off = shutil.copytree(out, tmp_path / "off")
    assert resume(off, "--algo.dynamic_sampling=false") == 0
    assert shards(off, 0) == [f"step-{step:06d}" for step in (1, 2, 3, 4)]

    train = shutil.copytree(out, tmp_path / "train")
    assert resume(train, "--loop.on_too_few_groups=train") == 0
    assert "rollout steps trained on fewer groups" in (train / "results.md").read_text()
