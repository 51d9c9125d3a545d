"""Damage of metrics.csv, of a phase's record and of plots, through the command line: named, mended, nothing lost."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import Kill
from same_run import assert_same_run, deterministic_rows
from tiny_run import TinyRun, resume

from rloop_lightning.run.metrics_csv import read_metrics

# The third of four rollout steps has its checkpoint, the fourth has its row.
KILLED = Kill("lightning:Trainer.save_checkpoint", 3)
Deed = Callable[[Path], None]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nul(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def digit(path: Path) -> None:
    """Another digit of a loss."""
    content = path.read_text()
    place = [found.start(1) for found in re.finditer(r"0\.\d\d(\d)\d{8}", content)][3]
    path.write_text(content[:place] + str((int(content[place]) + 5) % 10) + content[place + 1 :])


def foreign(path: Path) -> None:
    path.write_text("name,points\nAda,3\n")


def not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe" + path.read_bytes())


DEEDS: dict[str, Deed] = {
    "deleted": Path.unlink, "cut": cut, "NUL": nul, "a digit": digit, "foreign": foreign, "not UTF-8": not_text
}  # fmt: skip
RECORD = "round-0/explore/metrics.jsonl"


@pytest.fixture(scope="module")
def killed(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its exploration."""
    out = tmp_path_factory.mktemp("killed") / "run"
    assert tiny.fit_apart(out, out.with_suffix(".log"), KILLED) == -9
    assert (out / "round-0/explore/checkpoints/step-000002.ckpt").exists()
    return out


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("file", ["metrics.csv", RECORD])
def test_a_finished_run_is_mended_by_a_resume(file: str, deed: str, finished: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(finished, out)
    DEEDS[deed](out / file)
    assert resume(out, log, debug=False) == 0, log.read_text()
    assert f"{out / file} is damaged (" in log.read_text()
    assert log.read_text().count("is damaged") == 1
    assert_same_run(out, finished)
    for name in ("metrics.csv", RECORD):  # measured times as well
        assert (out / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("file", ["metrics.csv", RECORD])
def test_a_killed_run_goes_on_to_the_same_bits(
    file: str, deed: str, killed: Path, finished: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(killed, out)
    DEEDS[deed](out / file)
    assert resume(out, log, debug=False) == 0, log.read_text()
    assert f"{out / file} is damaged (" in log.read_text()
    assert log.read_text().count("is damaged") == 1
    assert_same_run(out, finished)


def test_rows_that_both_have_lost_are_named_below_the_results_table(finished: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(finished, out)
    for name, number in (("metrics.csv", 3), (RECORD, 1)):  # step 2 of the exploration
        lines = (out / name).read_bytes().splitlines(keepends=True)
        (out / name).write_bytes(b"".join([*lines[:number], *lines[number + 1 :]]))
    assert resume(out, log, debug=False) == 0, log.read_text()
    lost = "round 1 explore step 2"
    assert log.read_text().count(f"both lost {lost}") == 1
    note = f"- metrics.csv lacks rows that were damaged with their record: {lost}\n"
    assert (out / "results.md").read_text() == (finished / "results.md").read_text() + "\n" + note
    rows = deterministic_rows(finished)
    assert deterministic_rows(out) == [rows[0], rows[1], *rows[3:]]
    again = tmp_path / "again"
    assert resume(out, again, debug=False) == 0
    assert "both lost" not in again.read_text()
    assert (out / "results.md").read_text().endswith(note)


def test_a_run_of_an_older_version_without_records_goes_on(killed: Path, finished: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(killed, out)
    for path in out.rglob("*.jsonl"):
        path.unlink()
    assert resume(out, log, debug=False) == 0, log.read_text()
    assert "damaged" not in log.read_text()
    assert "lost" not in log.read_text()
    assert_same_run(out, finished)
    assert (out / RECORD).exists()


def test_a_stranger_s_table_in_place_of_a_run_s_first_one_is_a_message(tiny: TinyRun, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert tiny.fit_apart(out, log, Kill("rloop_lightning.run.evaluation:evaluation_progress", 1)) == -9
    foreign(out / "metrics.csv")
    assert resume(out, log, debug=False) == 1
    said = log.read_text()
    assert f"rloop-fit: error: {out / 'metrics.csv'} is not of this run (line 1: the columns don't begin with" in said
    assert "Traceback" not in said
    assert (out / "metrics.csv").read_text() == "name,points\nAda,3\n"
    assert not read_metrics(tmp_path / "none.csv")


def test_damaged_plots_and_tables_are_made_again(finished: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(finished, out)
    plots = sorted((out / "plots").iterdir())
    assert len(plots) == 7
    content = plots[0].read_bytes()
    plots[0].write_bytes(content[: len(content) // 2])
    plots[1].write_bytes(b"")
    nul(plots[2])
    content = bytearray(plots[3].read_bytes())
    content[len(content) // 2] ^= 1
    plots[3].write_bytes(content)
    nul(out / "results.md")
    assert resume(out, log, debug=False, draws=True) == 0, log.read_text()
    for path in [*plots, out / "results.md"]:
        assert path.read_bytes() == (finished / path.relative_to(out)).read_bytes(), path.name
