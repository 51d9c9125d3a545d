"""One process at a time runs in a folder, and a new run begins in an empty one. Through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import pytest
import yaml
from killing import Kill, Pause, Signal, run_fit, wait_until_paused
from same_run import assert_same_run
from tiny_run import TinyRun, resume

from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.main import main
from rloop_lightning.errors import ClaimError
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy
from rloop_lightning.run.claim import RunClaim
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.loop import LoopRunner

SECOND_STEP = "round-0/pool/step-000002.parquet"


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files with their times of modification and their content."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def holder(out: Path) -> dict[str, object]:
    """Who holds the lock of a run, once somebody does."""
    while not (out / "run.lock").exists() or not (content := (out / "run.lock").read_text()):
        sleep(0.01)
    return json.loads(content)


def test_a_running_run_is_refused_to_others_by_its_holders_name_and_a_killed_one_is_resumed(
    tiny: TinyRun, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with ThreadPoolExecutor() as pool:
        run = pool.submit(tiny.fit_apart, out, tmp_path / "log", Pause("os:replace", 1, SECOND_STEP))
        held = holder(out)
        process = int(str(held["process"]))
        wait_until_paused(process)
        before = files(out)
        try:
            for arguments in (["--resume", str(out)], ["--out", str(out)], ["--out", str(out), "--dry_run"]):
                assert run_fit(arguments, tmp_path / "refused", debug=False) == 2
                said = (tmp_path / "refused").read_text().splitlines()
                who = f"process {process} on host {os.uname().nodename}, since {held['since']}"
                option = arguments[0]
                assert [line for line in said if "error" in line][-1].startswith(
                    f"rloop-fit: error: {option} {out} is in use by {who}; "
                )
            assert len(said) == 3  # one message each
            assert files(out) == before
        finally:
            os.kill(process, signal.SIGKILL)
        assert run.result() == -9
    assert json.loads((out / "run.lock").read_text()) == held
    assert resume(out, tmp_path / "resumed") == 0
    assert "in use" not in (tmp_path / "resumed").read_text()
    assert (out / "run.lock").read_text() == ""
    assert_same_run(out, finished)


def test_of_two_resumes_at_once_one_goes_on(tiny: TinyRun, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert tiny.fit_apart(out, tmp_path / "log", Kill("os:replace", 1, SECOND_STEP)) == -9
    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(lambda log: resume(out, tmp_path / log, debug=False), ("one", "two")))
    assert sorted(codes) == [0, 2]
    refused = (tmp_path / ("one" if codes[0] else "two")).read_text()
    assert f"rloop-fit: error: --resume {out} is in use by process " in refused
    assert_same_run(out, finished)


def test_of_two_starts_with_one_name_one_runs_and_a_link_to_an_empty_folder_is_one(
    tiny: TinyRun, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (tmp_path / "elsewhere").mkdir()
    out.symlink_to(tmp_path / "elsewhere")

    def start(seed: int) -> int:
        return tiny.fit_apart(out, tmp_path / str(seed), arguments=(f"--seed_everything={seed}",), debug=False)

    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(start, (1, 2)))
    assert sorted(codes) == [0, 2]
    (winner,) = (seed for seed, code in zip((1, 2), codes, strict=True) if code == 0)
    refused = (tmp_path / str(3 - winner)).read_text()
    assert f"--out {out} is in use by process " in refused
    assert yaml.safe_load((out / "config.yaml").read_text())["seed_everything"] == winner
    assert (tmp_path / "elsewhere" / "final" / "model.safetensors").is_file()
    assert out.is_symlink()


def test_starts_without_a_name_in_the_same_second_get_folders_of_their_own(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rloop_lightning.cli.fit.time.strftime", lambda *_: "NOW")
    (tmp_path / "runs" / "NOW-dapo-rft-2").mkdir(parents=True)  # others' folders are not taken, even if empty
    for seed, name in {1: "NOW-dapo-rft", 2: "NOW-dapo-rft-3"}.items():
        assert main(["--config", str(tiny.config), f"--seed_everything={seed}", "--loop.explore_steps=1"]) == 0
        folder = Path("runs") / name
        assert f" is in {folder / 'final'}; " in capsys.readouterr().out
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"] == seed
    assert list((tmp_path / "runs" / "NOW-dapo-rft-2").iterdir()) == []


def test_names_without_end(tmp_path: Path) -> None:
    claims = [RunClaim(RunFolder(tmp_path / "runs" / "now"), named=False) for _ in range(4)]
    for claim in claims:
        claim.take(resumes=False)
    assert [claim.folder.out.name for claim in claims] == ["now", "now-2", "now-3", "now-4"]
    for claim in reversed(claims):
        with claim:
            pass
    assert list(tmp_path.iterdir()) == []


FOREIGN = {
    "a result": ("final/thesis.txt", "final"),
    "a policy": ("round-0/policy/model.safetensors", "round-0"),
    "a shard": ("round-0/pool/mine.parquet", "round-0"),
    "a table": ("results.md", "results.md"),
    "metrics": ("metrics.csv", "metrics.csv"),
    "a plot": ("plots/mine.png", "plots"),
    "settings": ("config.yaml", "config.yaml"),
    "a hidden file": (".git", ".git"),
    "a name that would write to the terminal": ("a\x1b[31m\nb", "a\\x1b[31m\\nb"),
}


@pytest.mark.parametrize(("path", "shown"), FOREIGN.values(), ids=FOREIGN.keys())
def test_a_folder_with_files_of_others_is_refused_and_stays_as_it_is(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, shown: str
) -> None:
    out = tmp_path / "run"
    (out / path).parent.mkdir(parents=True)
    (out / path).write_text("mine")
    before = files(tmp_path)
    for _ in range(2):  # the first leaves nothing that would let the second begin
        assert tiny.fit(out) == 2
        assert capsys.readouterr().err == (
            f"rloop-fit: error: --out {out} is not empty, it contains {shown}; choose a folder that is empty or does "
            "not exist\n"
        )
    assert tiny.fit(out, "--loop.problems_per_step=0", "--eval.samples=0") == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 3
    assert f"--out {out} is not empty, it contains {shown}; " in said
    assert files(tmp_path) == before


def test_many_files_are_counted(tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        (tmp_path / f"{number}").touch()
    assert tiny.fit(tmp_path) == 2
    assert "it contains 0, 1, 2, 3 and 2 more; " in capsys.readouterr().err


def test_places_where_no_folder_can_be(tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    there = sorted(tmp_path.iterdir())
    for place, message in {
        tmp_path / "file": f"{tmp_path}/file is not a folder; choose another",
        tmp_path / "file" / "run": f"{tmp_path}/file is not a folder; choose another",
        tmp_path
        / "dangling": f"{tmp_path}/dangling links to {tmp_path}/gone, which does not exist; make that folder, ",
        tmp_path / "dangling": f"{tmp_path}/dangling links to {tmp_path}/gone, which does not exist; make that folder",
        tmp_path / "dangling" / "run": f"{tmp_path}/dangling links to {tmp_path}/gone, which does not exist; ",
        Path("/proc/run"): "can't write in /proc: ",
        Path("/proc/self"): "can't write in /proc/self: ",
    }.items():
        assert tiny.fit(place) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"rloop-fit: error: --out {place}: {message}")
    assert sorted(tmp_path.iterdir()) == there


def test_a_start_that_fails_leaves_nothing(tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "run"
    for arguments in (
        ("--loop.problems_per_step=41",),  # is found once the problems are read
        ("--policy.model=/nowhere",),
        ("--dry_run",),
        ("--print_config",),
        ("--help",),
    ):
        try:
            code = tiny.fit(out, *arguments)
        except SystemExit as ended:
            code = ended.code or 0
        assert code == (0 if len(arguments[0]) < 15 else 2), arguments
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    assert tiny.fit(tmp_path / "empty", "--loop.problems_per_step=41") == 2
    assert list((tmp_path / "empty").iterdir()) == []


def test_ctrl_c_before_the_run_leaves_nothing_and_a_kill_no_more_than_a_start_can_replace(
    tiny: TinyRun, finished: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "new" / "run", tmp_path / "log"
    ctrl_c = Signal("rloop_lightning.model.policy:Policy.load", 1, number=signal.SIGINT)
    assert tiny.fit_apart(out, log, ctrl_c) == 130
    assert "no run was started" in log.read_text()
    assert list(tmp_path.iterdir()) == [log]
    assert tiny.fit_apart(out, log, Kill("os:replace", 1)) == -9
    assert (out / "run.lock").exists()
    assert tiny.fit_apart(out, log) == 0, log.read_text()
    assert_same_run(out, finished)


def test_after_a_killed_start_files_of_others_are_refused_and_stay(tmp_path: Path) -> None:
    out, theirs = tmp_path / "run", tmp_path / "theirs"
    out.mkdir()
    theirs.mkdir()
    (theirs / "train.jsonl").write_text("mine")
    (out / "data").symlink_to(theirs)
    for name in ("run.lock", "config.yaml", "problems.parquet", "state.json.partial"):
        (out / name).touch()
    before = sorted(tmp_path.rglob("*"))
    with RunClaim(RunFolder(out)) as claim:
        found = "it contains config.yaml, data, problems.parquet; choose a folder that is empty"
        assert [found in fault for fault in claim.faults()] == [True]
        with pytest.raises(ClaimError, match=found):
            claim.take(resumes=False)
    assert sorted(tmp_path.rglob("*")) == before
    assert (theirs / "train.jsonl").read_text() == "mine"


def test_after_a_killed_start_the_same_problem_sets_are_taken_and_others_are_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "data").mkdir(parents=True)
    (out / "run.lock").touch()
    (out / "data" / "train.jsonl").write_text('{"problem": "1+1="}\n')
    (out / "data" / "notes.txt").write_text("mine")
    before = files(out / "data").keys()
    with RunClaim(RunFolder(out)) as claim:
        claim.take(resumes=False)
        with pytest.raises(ValueError, match=r"data/train\.jsonl is there with other rows; move it away, or choose"):
            claim.write_sets({"test": [{"problem": "3+1="}], "train": [{"problem": "2+1="}]})
        assert files(out / "data").keys() == before
        claim.write_sets({"test": [{"problem": "3+1="}], "train": [{"problem": "1+1="}]})
        assert files(out / "data").keys() == before | {"test.jsonl"}
    assert files(out / "data").keys() == before
    assert (out / "data" / "train.jsonl").read_text() == '{"problem": "1+1="}\n'


# Files that others may have put into a run folder since the run began.
THEIRS = (
    "notes.txt",
    "final/notes.txt",
    "plots/mine.png",
    "round-0/policy/notes.txt",
    "round-0/explore/policy/notes.txt",
    "round-0/explore/policy/mine/notes.txt",
    "round-0/explore/checkpoints/step-best.ckpt",
    "round-0/pool/mine.parquet",
    "round-0/pool/step-1.parquet",
    "round-0/evaluations/step-mine.parquet",
)


def test_repeated_phases_and_deleted_policies_leave_files_of_others(
    tiny: TinyRun, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for path in THEIRS:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text("mine")

    def left() -> list[str]:
        return [path for path in THEIRS if (out / path).is_file() and (out / path).read_text() == "mine"]

    assert main(["--resume", str(out), "--restart_from=round-0/explore"]) == 0
    assert left() == list(THEIRS)
    same = tmp_path / "without theirs"
    shutil.copytree(out, same)
    for path in THEIRS:
        (same / path).unlink()
    assert_same_run(same, finished)
    assert main(["--resume", str(out), "--loop.select=explored"]) == 0
    assert (out / "final" / "model.safetensors").read_bytes() == (
        out / "round-0" / "explore" / "policy" / "model.safetensors"
    ).read_bytes()
    assert left() == list(THEIRS)
    more = ["--loop.rounds=2", "--loop.explore_steps=1", "--loop.keep_policies=last"]
    assert main(["--resume", str(out), *more]) == 0
    assert left() == list(THEIRS)
    assert sorted(path.name for path in (out / "round-0" / "explore" / "policy").iterdir()) == ["mine", "notes.txt"]


def test_a_runner_of_python_code_claims_its_folder_too(tiny: TinyRun, tmp_path: Path) -> None:
    parts = RLoopCLI(["--config", str(tiny.config), "--loop.explore_steps=1"]).parts
    policy = Policy.load(PolicyConfig())
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ClaimError, match=r"is not empty, it contains thesis.txt"):
        LoopRunner(tmp_path, parts).run(policy)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    runner = LoopRunner(tmp_path / "run", parts)
    with RunClaim(RunFolder(tmp_path / "run")) as claim:
        claim.take(resumes=False)
        with pytest.raises(ClaimError, match=r"run is in use by this process; choose another folder"):
            runner.run(policy)
        runner.run(policy, claim=claim)
    runner.run(policy)  # the folder is free again
