"""`--loop.keep_policies last`: what stays on disk is enough for a resume and for the hand-over."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from killing import Kill
from safetensors.torch import load_file
from same_run import deterministic_rows
from tiny_run import TinyRun, resume

from rloop_lightning.cli.main import main
from rloop_lightning.run.state import LoopState

RENAME = "os:replace"
EXPLORED, CONSOLIDATED = "round-{}/explore/policy", "round-{}/policy"


@pytest.fixture(scope="module")
def three_rounds(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun.written(
        tmp_path_factory.mktemp("three-rounds"),
        loop={"rounds": 3, "explore_steps": 2},
        consolidate={"epochs": 1},
        eval={"sets": ["validation"]},
    )


@pytest.fixture(scope="module")
def all_kept(three_rounds: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_rounds.finished(tmp_path_factory.mktemp("all") / "run")


@pytest.fixture(scope="module")
def last_kept(three_rounds: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_rounds.finished(tmp_path_factory.mktemp("last") / "run", "--loop.keep_policies=last")


def policies(out: Path) -> set[str]:
    folders = (path.parent.relative_to(out) for path in out.glob("round-*/**/model.safetensors"))
    return set(map(str, folders))


def same_policy(ours: Path, theirs: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    return all(first[name].equal(second[name]) for name in second)


def test_all_keeps_both_policies_of_every_round(all_kept: Path) -> None:
    assert policies(all_kept) == {name.format(number) for number in range(3) for name in (EXPLORED, CONSOLIDATED)}


def test_last_keeps_what_a_resume_needs_and_gives_the_same_run(all_kept: Path, last_kept: Path) -> None:
    assert policies(last_kept) == {EXPLORED.format(2), CONSOLIDATED.format(1), CONSOLIDATED.format(2)}
    assert same_policy(last_kept / "final", all_kept / "final")
    assert deterministic_rows(last_kept) == deterministic_rows(all_kept)
    assert (last_kept / "results.md").read_text() == (all_kept / "results.md").read_text()


# In the order in which they come: when a policy has just become needless, and in the middle of its deletion.
MOMENTS = [
    Kill(RENAME, 1, "round-0/policy"),
    Kill(RENAME, 1, "round-1/explore/policy"),
    Kill("rloop_lightning.run.loop:drop_policies", 3),
    Kill("rloop_lightning.system.folders:_remove_file", 2, "explore/policy"),
    Kill(RENAME, 1, "round-2/expert.parquet"),
    Kill("rloop_lightning.system.folders:_remove_file", 2, "round-0/policy"),
    Kill(RENAME, 1, "final"),
]


def test_a_run_that_keeps_the_last_policies_resumes_after_any_kill(
    three_rounds: TinyRun, last_kept: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert three_rounds.fit_apart(out, log, MOMENTS[0], arguments=("--loop.keep_policies=last",)) == -9
    for moment in MOMENTS[1:]:
        assert resume(out, log, moment) == -9, f"not killed at {moment}: {log.read_text()}"
    assert resume(out, log) == 0, log.read_text()
    assert policies(out) == policies(last_kept)
    assert same_policy(out / "final", last_kept / "final")
    assert deterministic_rows(out) == deterministic_rows(last_kept)


def test_a_damaged_initial_policy_is_consolidated_again_from_the_one_before(
    three_rounds: TinyRun, last_kept: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    killed = Kill(RENAME, 1, "round-2/pool/step-000002.parquet")
    assert three_rounds.fit_apart(out, log, killed, arguments=("--loop.keep_policies=last",)) == -9
    (out / "round-1" / "policy" / "model.safetensors").write_bytes(b"damaged")
    assert resume(out, log) == 0, log.read_text()
    assert "round 2 consolidate is repeated" in log.read_text()
    assert "round 1 consolidate is repeated" not in log.read_text()
    assert same_policy(out / "final", last_kept / "final")
    assert policies(out) == policies(last_kept)


def test_the_best_policy_so_far_is_kept_for_a_selection_by_pass_at_k(three_rounds: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--loop.keep_policies=last", "--loop.select=pass@1", "--eval.max_problems=0", "--eval.samples=8"]
    assert three_rounds.fit(out, *arguments, "--debug") == 0
    state = json.loads((out / "state.json").read_text())
    best = max(state["results"], key=lambda name: state["results"][name]["eval/validation/pass@1"])
    assert state["selected"] == best
    always = {EXPLORED.format(2), CONSOLIDATED.format(1), CONSOLIDATED.format(2)}
    kinds = {"explored": EXPLORED, "consolidated": CONSOLIDATED}
    names = {f"round {number + 1} {kind}": kinds[kind].format(number) for number in range(3) for kind in kinds}
    assert best not in ("base", "round 3 explored")
    assert policies(out) == always | {names[best]}


def test_a_changed_selection_may_take_what_is_kept_and_is_refused_by_name_otherwise(
    last_kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(last_kept, out)
    assert main(["--resume", str(out), "--loop.select=explored", "--debug"]) == 0
    assert same_policy(out / "final", out / EXPLORED.format(2))
    state = LoopState.load(out / "state.json")
    results = {name: {**metrics, "eval/validation/pass@1": 0.0} for name, metrics in state.results.items()}
    results["round 1 explored"]["eval/validation/pass@1"] = 1.0
    replace(state, results=results).save(out / "state.json")
    assert main(["--resume", str(out), "--loop.select=pass@1"]) == 2
    assert (
        "--loop.select pass@1 selects round 1 explored, whose policy was deleted (--loop.keep_policies last); "
        "select last or explored"
    ) in capsys.readouterr().err
    assert same_policy(out / "final", out / EXPLORED.format(2))


def test_a_resume_may_free_the_disk(all_kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(all_kept, out)
    assert main(["--resume", str(out), "--loop.keep_policies=last", "--debug"]) == 0
    assert policies(out) == {EXPLORED.format(2), CONSOLIDATED.format(1), CONSOLIDATED.format(2)}


def test_a_phase_that_reads_a_deleted_policy_is_not_repeated_with_the_exploration_unasked(
    three_rounds: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    kept = ["--loop.keep_policies=last", "--loop.rounds=2", "--loop.explore_steps=1"]
    assert three_rounds.fit(out, *kept, "--consolidate=average") == 0
    before = (out / "state.json").read_bytes()
    assert main(["--resume", str(out), "--restart_from", "round-0/consolidate"]) == 2
    assert (
        f"--restart_from round-0/consolidate: it reads {out}/round-0/explore/policy, which was deleted "
        "(--loop.keep_policies last); take round-0/explore, which makes it again"
    ) in capsys.readouterr().err
    assert (out / "state.json").read_bytes() == before
    assert main(["--resume", str(out), "--restart_from", "round-0/explore"]) == 0
