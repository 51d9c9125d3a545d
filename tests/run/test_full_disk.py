"""A full disk at every writer of a run: one message with path, reason and free space; a resume gives the same run.

The system refuses the write for real: a limit on the size of files, which it checks as it checks the disk.
"""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from killing import FullDisk
from same_run import assert_same_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TinyRun, resume

from rloop_lightning.run.metrics_csv import read_metrics

RUN = "rloop_lightning.run"
LOGGERS = "lightning.pytorch.loggers"

DISKS = {
    "a shard": (
        FullDisk("rloop_lightning.rollouts.pool:write_shard", 2, bytes=3000),
        "round-0/pool/step-000002.parquet",
    ),
    "the expert set": (FullDisk(f"{RUN}.fine_tuning:build_expert_set", 1, bytes=1000), "round-0/expert.parquet"),
    "an evaluation": (
        FullDisk(f"{RUN}.evaluation:write_record", 2, bytes=1000),
        "round-0/evaluations/explored.parquet",
    ),
    "a checkpoint": (
        FullDisk("lightning:Trainer.save_checkpoint", 2, bytes=100_000),
        "round-0/explore/checkpoints/step-000002.ckpt",
    ),
    "a policy": (FullDisk("rloop_lightning.model.policy:Policy.save", 1, bytes=100_000), "round-0/explore/policy"),
    "the final policy": (FullDisk("rloop_lightning.model.policy:Policy.save", 3, bytes=100_000), "final"),
    "the state": (FullDisk(f"{RUN}.folder:RunFolder.save_state", 4, bytes=100), "state.previous.json"),
    "the results": (FullDisk(f"{RUN}.results:ResultsWriter.after_phase", 1, bytes=100), "results.md"),
    "a plot": (FullDisk(f"{RUN}.plots:save_figure", 2, bytes=20_000), "plots/gradient_norm.png"),
    "the plot of a pool": (FullDisk(f"{RUN}.pool_plot:save_figure", 1, bytes=20_000), "plots/round-0-pool.png"),
    "metrics.csv": (FullDisk(f"{RUN}.run_metrics:write_tail", 1, bytes=400), "metrics.csv"),
    "a new column": (FullDisk(f"{RUN}.run_metrics:write_table", 2, bytes=100), "metrics.csv"),
    "a record": (FullDisk(f"{RUN}.run_metrics:PhaseRecord.append", 3, bytes=900), "round-0/explore/metrics.jsonl"),
    "the end of a record": (FullDisk(f"{RUN}.loop:complete_record", 2, bytes=100), "round-0/explore/metrics.jsonl"),
    "loggers.json": (FullDisk(f"{RUN}.loggers:write_json", 1, bytes=10), "loggers.json"),
    "TensorBoard's first file": (FullDisk(f"{LOGGERS}:TensorBoardLogger.log_hyperparams", 1, bytes=50), "tensorboard"),
    "TensorBoard": (FullDisk(f"{LOGGERS}:TensorBoardLogger.log_metrics", 3, bytes=500), "tensorboard"),
    "TensorBoard while it flushes": (FullDisk(f"{LOGGERS}:TensorBoardLogger.save", 3, bytes=500), "tensorboard"),
    "TensorBoard in a later phase": (FullDisk(f"{LOGGERS}:TensorBoardLogger.log_metrics", 8, bytes=300), "tensorboard"),
}


def assert_told(log: Path, out: Path, path: Path) -> None:
    """What a user is told of a full disk."""
    said = log.read_text()
    assert f"rloop-fit: error: can't write {path}: " in said
    assert re.search(r"File too large.* \([\d,.]+ MB are free in ", said)
    assert f"rloop-fit: error: fix the cause, then resume with: rloop-fit --resume {out}\n" in said
    assert said.count("rloop-fit: error:") == 2
    assert "Traceback" not in said
    assert "Exception in thread" not in said


@pytest.mark.parametrize("name", DISKS)
def test_a_full_disk_stops_the_run_which_resumes_when_there_is_room(
    name: str, tiny: TinyRun, finished: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    disk, path = DISKS[name]
    drawing = replace(tiny, draws="plot" in name)
    assert drawing.fit_apart(out, log, disk, debug=False) == 1, log.read_text()
    assert_told(log, out, out / path)
    assert not list(out.rglob("*.partial"))
    rows = len(read_metrics(out / "metrics.csv"))
    if rows:  # none is half-written
        assert len((out / "metrics.csv").read_text().splitlines()) == rows + 1
    again = tmp_path / "again"
    assert resume(out, again, debug=False) == 0, again.read_text()
    assert "damaged" not in again.read_text()
    assert_same_run(out, finished)


def with_loggers(folder: Path) -> TinyRun:
    """A run with a CSVLogger and a TensorBoardLogger of the user's."""
    loggers = [
        {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder / "csv")}},
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(folder / "board")}},
    ]
    return TinyRun.written(folder, trainer={"logger": loggers})


USERS = {
    "a CSVLogger": (FullDisk(f"{LOGGERS}:CSVLogger.save", 4, bytes=700), "csv"),
    "a TensorBoardLogger": (FullDisk(f"{LOGGERS}:TensorBoardLogger.log_metrics", 6, bytes=500), "board"),
}


@pytest.mark.parametrize("name", USERS)
def test_a_users_logger_on_a_full_disk_loses_nothing(name: str, finished: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    disk, place = USERS[name]
    assert with_loggers(tmp_path).fit_apart(out, log, disk, debug=False) == 1, log.read_text()
    assert_told(log, out, tmp_path / place / "lightning_logs" / "version_0")
    again = tmp_path / "again"
    assert resume(out, again, debug=False) == 0, again.read_text()
    assert_same_run(out, finished)
    steps = [*range(len(read_metrics(out / "metrics.csv")))]
    with (tmp_path / "csv" / "lightning_logs" / "version_0" / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == steps
    for board in (out / "tensorboard", tmp_path / "board" / "lightning_logs" / "version_0"):
        events = EventAccumulator(str(board), size_guidance={"scalars": 0})
        events.Reload()
        assert {one.step for one in events.Scalars("round")} == {*steps}, board
