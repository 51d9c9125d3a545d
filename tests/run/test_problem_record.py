"""A resume looks at the problems: the run's record of them, and what the message says of each kind of change."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tiny_run import TinyRun

from rloop_lightning.cli.main import main
from rloop_lightning.model.config import embedded_model_path
from rloop_lightning.run import problem_record

ROWS = [{"problem": f"{a} {a + 1} {a + 2}=", "answer": str(3 * a + 3)} for a in range(1, 13)]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A complete run on two files of problems."""
    folder = tmp_path_factory.mktemp("problems")
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    write(train, ROWS)
    write(test, ROWS[:3])
    data = {"name": str(train), "eval": [str(test)], "template": "{problem}"}
    tiny = TinyRun.written(folder, data=data, reward={"name": "reward_functions.boxed"}, loop={"explore_steps": 1})
    assert tiny.fit(folder / "run") == 0
    return folder / "run", train, test


def row(index: int, **changes: str) -> dict[str, str]:
    return {**ROWS[index], **changes}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [row(3, problem="9 9 9="), *ROWS],
            ["train: 1 problem (train.jsonl:13) is new", "the text of 12 problems (train.jsonl:1, "],
        ),
        (ROWS[:-1], ["train: 1 problem (train.jsonl:12) is gone"]),
        ([*ROWS[:4], row(4, answer="7"), *ROWS[5:]], ["the gold answer of 1 problem (train.jsonl:5) is different now"]),
        ([*ROWS[:4], row(4, problem="8="), *ROWS[5:]], ["the text of 1 problem (train.jsonl:5) is different now"]),
    ],
    ids=["row-in-front", "row-gone", "answer", "text"],
)
def test_changed_problems_are_named_and_refused(
    begun: tuple[Path, Path, Path],
    rows: list[dict[str, str]],
    said: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, train, _ = begun
    write(train, rows)
    try:
        assert main(["--resume", str(run), "--loop.rounds=2"]) == 2
    finally:
        write(train, ROWS)
    message = capsys.readouterr().err
    assert "--resume: the problems are not those of the run: " in message
    assert "restore --data as it was when the run started, or start a new run" in message
    for part in said:
        assert part in message
    assert "rounds: 1" in (run / "config.yaml").read_text()


def test_a_changed_evaluation_set_is_refused_too(
    begun: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, test = begun
    write(test, ROWS[:2])
    try:
        assert main(["--resume", str(run)]) == 2
    finally:
        write(test, ROWS[:3])
    assert "test: 1 problem (test.jsonl:3) is gone" in capsys.readouterr().err


def test_the_same_problems_resume(begun: tuple[Path, Path, Path]) -> None:
    assert main(["--resume", str(begun[0])]) == 0


def test_a_date_in_the_chat_template_stays_that_of_the_first_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that names today's date would give other prompts on the day of the resume."""
    model = shutil.copytree(embedded_model_path(), tmp_path / "model")
    template = "{{ strftime_now('%d%m%Y') }}{{ messages[0]['content'] }}"
    (model / "chat_template.jinja").write_text(template)
    train = tmp_path / "train.jsonl"
    write(train, ROWS)
    data = {"name": str(train), "instruction": "", "validation_size": 0}
    tiny = TinyRun.written(
        tmp_path,
        data=data,
        policy={"model": str(model)},
        reward={"name": "reward_functions.boxed"},
        loop={"explore_steps": 1},
        eval={"sets": []},
    )
    run = tmp_path / "run"
    assert tiny.fit(run) == 0
    began = problem_record.recorded_date(run / "problems.parquet")

    class Later(date):
        @classmethod
        def today(cls) -> date:
            return date(2031, 5, 6)

    for module in ("rloop_lightning.cli.prepare", "rloop_lightning.run.problem_record"):
        monkeypatch.setattr(f"{module}.date", Later)
    assert main(["--resume", str(run), "--loop.rounds=2"]) == 0
    problem_record_before = problem_record.recorded_date(run / "problems.parquet")
    assert problem_record_before == began != date(2031, 5, 6)


def test_without_a_readable_record_the_run_goes_on_and_says_so(
    begun: tuple[Path, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(begun[0], tmp_path / "run")
    record = run / "problems.parquet"
    record.write_bytes(record.read_bytes()[:100])
    assert main(["--resume", str(run), "--trust"]) == 0  # a copy of the run is unknown
    assert "problems.parquet was damaged or missing; it is written again, and is what it was" in caplog.text


def test_a_damaged_record_is_not_written_again_in_silence_if_the_problems_differ(
    begun: tuple[Path, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(begun[0], tmp_path / "run")
    (run / "problems.parquet").unlink()
    write(begun[1], [*ROWS[:4], row(4, answer="7"), *ROWS[5:]])
    try:
        assert main(["--resume", str(run), "--trust"]) == 0
    finally:
        write(begun[1], ROWS)
    assert "nothing tells whether the problems are still those of the run" in caplog.text
