"""metrics.csv and the records of its phases: whatever one of them loses, the other gives back."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.mending import complete_record, lost_rows, mend, rows_on_disk
from rloop_lightning.run.metrics_csv import MetricsError
from rloop_lightning.run.run_metrics import RunMetrics
from rloop_lightning.run.state import Stage, plan

BASE, EXPLORE, EXPLORED, CONSOLIDATE, CONSOLIDATED = STAGES = plan(1, consolidates=True)
STEPS = {BASE: [0], EXPLORE: [1, 2, 3, 4], EXPLORED: [1], CONSOLIDATE: [1, 2], CONSOLIDATED: [2]}
Deed = Callable[[Path], None]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """The metrics of a whole run: a base evaluation, four and two training steps, two evaluations."""
    folder = RunFolder(tmp_path)
    for stage in STAGES:
        mend(folder, STAGES[: STAGES.index(stage)], stage)
        logger = RunMetrics(folder, stage)
        for step in STEPS[stage]:
            logger.log_metrics({f"{stage.phase}/a": step / 7, "n": step}, step=step)
            logger.log_metrics({"by/itself": float("nan")}, step=step)
        complete_record(folder, stage)
    return folder


def texts(folder: RunFolder) -> list[dict[str, str]]:
    """The rows as text, in which NaN is equal to itself."""
    with folder.metrics.open(newline="") as file:
        return [{name: text for name, text in row.items() if text} for row in csv.DictReader(file)]


def snapshot(folder: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.out.rglob("*") if path.is_file()}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_lines(path: Path) -> None:
    """At the end of a line."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))


def without_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))


def nul(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-60] + bytes(60))


def all_nul(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def digit(path: Path) -> None:
    """Another first digit of step 2's number, 2 / 7."""
    content = path.read_bytes()
    assert b"0.285714" in content
    path.write_bytes(content.replace(b"0.285714", b"0.385714", 1))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_text("name,points\nAda,3\n")


def latin(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"explore", b"expl\xf6re", 1))


DEEDS: list[Deed] = [Path.unlink, cut, cut_lines, without_a_line, nul, all_nul, digit, empty, foreign, latin]


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("file", ["metrics.csv", "round-0/explore/metrics.jsonl"])
def test_either_of_both_may_be_damaged(file: str, deed: Deed, run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    want, path = texts(run), run.out / file
    deed(path)
    with caplog.at_level(logging.WARNING):
        history = mend(run, STAGES)
    (message,) = caplog.messages
    assert message.startswith(f"{path} is damaged (")
    assert texts(run) == want
    assert history.steps == len(history.rows) == len(want) == 9
    assert [step for step, _ in history.rows] == [*range(9)]
    assert not lost_rows(run, STAGES)
    caplog.clear()
    mended = snapshot(run)
    mend(run, STAGES)
    assert not caplog.messages
    assert snapshot(run) == mended


@pytest.mark.parametrize("deed", DEEDS)
def test_a_damaged_evaluation_is_taken_from_the_table(
    deed: Deed, run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    want, path = texts(run), run.record(EXPLORED)
    if deed is digit:
        path.write_bytes(path.read_bytes().replace(b"0.14", b"0.15", 1))
    elif deed is latin:
        path.write_bytes(b"\xf6" + path.read_bytes())
    else:
        deed(path)
    with caplog.at_level(logging.WARNING):
        mend(run, STAGES)
    (message,) = caplog.messages
    assert message.startswith(f"{path} is damaged (")
    assert texts(run) == want


def test_the_message_names_record_and_line(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    digit(run.record(EXPLORE))
    mend(run, STAGES)
    where = f"{run.record(EXPLORE)} is damaged (line 3: its checksum differs; the row of step 2 lacks metrics); "
    assert caplog.messages == [f"{where}what it lacks is taken from metrics.csv"]


def test_the_message_names_the_row_that_differs(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    digit(run.metrics)
    mend(run, STAGES)
    (message,) = caplog.messages
    what = "the row of round 1 explore step 2 differs from its record"
    assert message == f"{run.metrics} is damaged ({what}); it is written again from the records of the phases"


def keep_lines(path: Path, *numbers: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[number - 1] for number in numbers))


def lose_two(run: RunFolder) -> None:
    """Steps 2 and 3 of the exploration, in the record (two lines a step) and in the table."""
    keep_lines(run.record(EXPLORE), 1, 2, 7, 8, 9)
    keep_lines(run.metrics, 1, 2, 3, 6, 7, 8, 9, 10)


def lose_the_end(run: RunFolder) -> None:
    """All after step 2 of the exploration, and that there was more."""
    keep_lines(run.record(EXPLORE), 1, 2, 3, 4)
    keep_lines(run.metrics, 1, 2, 3, 4, 7, 8, 9)
    digit(run.metrics)


def lose_an_evaluation(run: RunFolder) -> None:
    run.record(EXPLORED).unlink()
    keep_lines(run.metrics, 1, 2, 3, 4, 5, 6)


def lose_the_consolidation(run: RunFolder) -> None:
    run.record(CONSOLIDATE).unlink()
    run.metrics.unlink()


LOSSES: dict[str, tuple[Callable[[RunFolder], None], str, set[int], int]] = {
    "rows": (lose_two, "round 1 explore steps 2-3", {2, 3}, 9),
    "the end": (lose_the_end, "round 1 explore any after step 2", {3, 4}, 7),
    "an evaluation": (lose_an_evaluation, "the evaluation of round 1 explored", {5}, 9),
    "a phase": (lose_the_consolidation, "round 1 consolidate all that it had", {6, 7}, 7),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_what_both_have_lost_is_named_once(kind: str, run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    deed, said, lost, steps = LOSSES[kind]
    want = [row for number, row in enumerate(texts(run)) if number not in lost]
    deed(run)
    history = mend(run, STAGES)
    named = [message for message in caplog.messages if " both lost " in message]
    assert named == [f"{run.metrics} and the record both lost {said}; the run goes on without these rows"]
    assert texts(run) == want
    assert history.steps == steps
    assert lost_rows(run, STAGES) == f"metrics.csv lacks rows that were damaged with their record: {said}"
    caplog.clear()
    mended = snapshot(run)
    mend(run, STAGES)
    assert not caplog.messages
    assert snapshot(run) == mended
    assert lost_rows(run, STAGES).endswith(said)


def test_lost_steps_keep_their_numbers_in_other_loggers(run: RunFolder) -> None:
    lose_two(run)
    assert [step for step, _ in mend(run, STAGES).rows] == [0, 1, 4, 5, 6, 7, 8]


def checkpoint(run: RunFolder, stage: Stage, step: int) -> None:
    run.checkpoint_folder(stage).mkdir(parents=True, exist_ok=True)
    (run.checkpoint_folder(stage) / f"step-{step:06d}.ckpt").touch()


def test_what_a_kill_leaves_is_no_damage(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    """Half a line in each, a row in the record alone, and rows after the newest checkpoint in both."""
    checkpoint(run, EXPLORE, 2)
    keep_lines(run.metrics, 1, 2, 3, 4, 5)
    run.metrics.write_bytes(run.metrics.read_bytes() + b"0,explore,4,0.5")
    keep_lines(run.record(EXPLORE), *range(1, 9))
    run.record(EXPLORE).write_bytes(run.record(EXPLORE).read_bytes() + b'{"crc32": "')
    for stage in (EXPLORED, CONSOLIDATE, CONSOLIDATED):
        run.record(stage).unlink()
    mend(run, [BASE], EXPLORE)
    assert not caplog.messages
    assert [row["step"] for row in texts(run)] == ["0", "1", "2"]
    assert [*run_steps(run, EXPLORE)] == [1, 2]


def run_steps(run: RunFolder, stage: Stage) -> list[int]:
    content = run.record(stage).read_text()
    return [step for step in range(10) if f'"step": {step}' in content]


def test_a_module_s_own_metrics_after_the_checkpoint_may_be_in_the_record_alone(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint(run, EXPLORE, 2)
    lines = run.metrics.read_text().splitlines()
    lines[3] = lines[3].replace(",nan", ",", 1)
    run.metrics.write_text("\n".join(lines[:4]) + "\n")
    mend(run, [BASE], EXPLORE)
    assert not caplog.messages
    assert texts(run)[-1]["by/itself"] == "nan"


def test_lost_rows_before_the_newest_checkpoint_are_named(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint(run, EXPLORE, 4)
    lose_two(run)
    mend(run, [BASE], EXPLORE)
    assert any("both lost round 1 explore steps 2-3" in message for message in caplog.messages)
    assert [row["step"] for row in texts(run)] == ["0", "1", "4"]


def test_a_run_without_records_gets_them_from_its_table(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    """As of a version that wrote none."""
    want = texts(run)
    for stage in STAGES:
        run.record(stage).unlink()
    mend(run, STAGES)
    assert not caplog.messages
    assert texts(run) == want
    run.metrics.unlink()
    mend(run, STAGES)
    assert texts(run) == want


def test_a_phase_that_made_no_step_has_no_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a consolidation on an empty expert set."""
    folder = RunFolder(tmp_path)
    RunMetrics(folder, BASE).log_metrics({"a": 1.0}, step=0)
    for stage in (BASE, EXPLORE):
        complete_record(folder, stage)
    assert mend(folder, [BASE, EXPLORE], EXPLORED).steps == 1
    folder.metrics.unlink()
    mend(folder, [BASE, EXPLORE], EXPLORED)
    (message,) = caplog.messages
    assert "it is written again" in message
    assert not lost_rows(folder, STAGES)


@pytest.mark.parametrize("stage", [BASE, EXPLORE])
def test_a_stranger_s_table_is_not_overwritten(stage: Stage, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    foreign(folder.metrics)
    with pytest.raises(MetricsError, match=r"metrics.csv is not of this run \(line 1: the columns .*\); move it"):
        mend(folder, [], stage)
    assert folder.metrics.read_text() == "name,points\nAda,3\n"


def test_rows_are_counted_once_wherever_they_are(run: RunFolder) -> None:
    assert rows_on_disk(run) == 9
    run.metrics.unlink()
    assert rows_on_disk(run) == 9
    run.record(EXPLORE).unlink()
    assert rows_on_disk(run) == 5


def test_a_record_at_another_s_place_is_named(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    want = texts(run)
    run.record(EXPLORE).write_bytes(run.record(CONSOLIDATE).read_bytes())
    mend(run, STAGES)
    (message,) = caplog.messages
    assert message.startswith(f"{run.record(EXPLORE)} is damaged (its rows are of another phase; ")
    assert texts(run) == want


def test_a_record_that_names_endless_steps_costs_nothing(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    from rloop_lightning.run.phase_records import PhaseRecord

    PhaseRecord(run.record(EXPLORE)).complete(10**30)
    history: Any = mend(run, STAGES)
    assert len(history.rows) == 9
    assert "both lost round 1 explore steps 5-1000" in caplog.text
