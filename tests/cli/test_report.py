"""`rloop-report`, from its arguments to the page on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from reported import with_seed

from rloop_lightning.cli.report import main
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.state import LoopState


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "report.html").unlink()
    return out


def errors(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(arguments) == 2
    return [line.removeprefix("rloop-report: error: ") for line in capsys.readouterr().err.splitlines()]


def test_the_report_of_a_run_is_that_which_the_run_wrote(
    run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run)]) == 0
    assert (run / "report.html").read_bytes() == (finished / "report.html").read_bytes()
    assert capsys.readouterr().out.startswith(f"{run / 'report.html'}: the report of {run}, 0.")
    assert main([str(run)]) == 0  # again


def test_a_run_whose_data_is_gone_has_a_page_without_prompts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = LoopState.load(RunFolder(run).state)
    state.settings["data"]["name"] = "missing"  # type: ignore[index] # a dict
    state.save(RunFolder(run).state)
    assert main([str(run)]) == 0
    assert "the page is without prompts: " in capsys.readouterr().out
    assert "Prompts are shown where the data of the run can be read." in (run / "report.html").read_text()


def test_code_of_others_is_not_imported_without_trust(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    state = LoopState.load(RunFolder(run).state)
    state.settings["data"]["name"] = "theirs.Problems"  # type: ignore[index] # a dict
    state.save(RunFolder(run).state)
    assert main([str(run)]) == 0
    assert "--trust" in capsys.readouterr().out


def test_several_runs_are_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = with_seed(shutil.copytree(run, tmp_path / "other"), 1)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "other"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("comparison.html: 2 runs, arms and their number of runs: dapo + rft (2), 0.")
    assert main(["run", str(other), "--arms", "first, it's", "--out", "x.html"]) == 0
    assert "arms and their number of runs: first (1), it's (1)" in capsys.readouterr().out
    text = (tmp_path / "x.html").read_text()
    assert "<h1>first against it&#39;s</h1>" in text
    assert "2 arms with 1 seed each" in text


def test_all_errors_are_told_at_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine")
    assert errors(capsys, str(run), str(tmp_path), str(run), "--out", str(mine), "--arms", "a,b", "--trust") == [
        f"--out {mine}: it exists and is no page of rloop-report; give another name",
        "--arms names 2 arms for 3 runs; give one name for each run, in order",
        f"{tmp_path}: no state.json there; give the folder of a run",
        f"{run} is given twice; leave one out",
        "--data and --trust belong to the report of one run; leave them out",
    ]
    assert mine.read_text() == "<p>mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.html"], "give the folder of a run: rloop-report RUN"),
        (["{run}", "--out", "x.htm"], "--out x.htm: the name must end in .html"),
        (["{run}", "--out", "{run}/a.html"], "--out {run}/a.html: it is a folder; give a file"),
        (["{run}", "--colour", "red"], "--colour"),
        (["{run}", "--arms", "a"], "--arms belongs to the report of several runs; leave it out"),
        (["{run}", "{copy}"], "are both seed 0 of dapo + rft"),
        (["a\x1b[31mb"], "a\\x1b[31mb: no state.json there; give the folder of a run"),
        (["{run}", "--out", "/proc/nothing/x.html"], "/proc/nothing"),
    ],
)
def test_wrong_input_is_one_clear_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"run": str(run), "copy": str(tmp_path / "copy")}
    (run / "a.html").mkdir()
    shutil.copytree(run, tmp_path / "copy")
    (said,) = errors(capsys, *[one.format(**places) for one in arguments])
    assert message.format(**places) in said


def test_help_and_version_need_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["runs/x", "-h"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out.startswith("usage: rloop-report RUN [RUN ...]")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rloop-report 0.")
