"""The run's table: rows merged, columns added, kills survived; through Lightning's own calls where it matters."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import lightning as L
import pytest
import torch

from rloop_lightning.errors import RunFault
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.mending import mend
from rloop_lightning.run.metrics_csv import column, read_metrics
from rloop_lightning.run.run_metrics import RunMetrics
from rloop_lightning.run.state import Stage

EXPLORE = Stage(0, "explore", "explored")
CONSOLIDATE = Stage(0, "consolidate", "consolidated")
EXPLORE_AGAIN = Stage(1, "explore", "explored")


def logger_in(run: Path, stage: Stage = EXPLORE) -> RunMetrics:
    return RunMetrics(RunFolder(run), stage)


def lines(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_calls_for_one_step_become_one_row_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = logger_in(tmp_path)
    logger.log_metrics({"a/x": 0.1, "epoch": 0}, step=1)
    logger.save()
    logger.log_metrics({"b/y": 2}, step=1)
    logger.log_metrics({"a/x": 1 / 3, "b/y": 4}, step=2)
    logger.log_metrics({"a/x": 0.5}, step=2)
    assert lines(path) == [
        ["round", "phase", "step", "a/x", "b/y"],
        ["0", "explore", "1", "0.1", "2"],
        ["0", "explore", "2", "0.5", "4"],
    ]


def test_a_shorter_row_over_a_longer_leaves_nothing_behind(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = logger_in(tmp_path)
    logger.log_metrics({"a": 0.12345678901234}, step=1)
    logger.log_metrics({"a": 1.0}, step=1)
    assert path.read_text() == "round,phase,step,a\n0,explore,1,1.0\n"


def test_a_new_column_keeps_the_rows_of_other_phases(tmp_path):
    path = tmp_path / "metrics.csv"
    logger_in(tmp_path).log_metrics({"a": 1.0}, step=5)
    logger_in(tmp_path, CONSOLIDATE).log_metrics({"b": 2.0}, step=1)
    logger_in(tmp_path, EXPLORE_AGAIN).log_metrics({"a": 3.0, "c": 4.0}, step=1)
    assert read_metrics(path) == [
        {"round": 0, "phase": "explore", "step": 5, "a": 1.0},
        {"round": 0, "phase": "consolidate", "step": 1, "b": 2.0},
        {"round": 1, "phase": "explore", "step": 1, "a": 3.0, "c": 4.0},
    ]
    assert lines(path)[0] == ["round", "phase", "step", "a", "b", "c"]


def test_floats_keep_every_digit_and_tensors_and_nan_are_taken(tmp_path):
    path = tmp_path / "metrics.csv"
    value = 0.1 + 0.2
    logger_in(tmp_path).log_metrics(
        {"a": value, "b": torch.tensor(0.5), "c": float("nan"), "d": float("inf"), "e": True}, step=1
    )
    (row,) = read_metrics(path)
    assert row["a"] == value
    assert row["b"] == 0.5
    assert math.isnan(row["c"])
    assert row["d"] == math.inf
    assert row["e"] == 1


def test_what_a_resumed_phase_repeats_is_dropped_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.csv"
    for stage in (EXPLORE, CONSOLIDATE, EXPLORE_AGAIN):
        logger = logger_in(tmp_path, stage)
        for step in range(1, 5):
            logger.log_metrics({"a": float(step)}, step=step)
    checkpoint = tmp_path / "round-1" / "explore" / "checkpoints" / "step-000002.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    history = mend(RunFolder(tmp_path), [EXPLORE, CONSOLIDATE], EXPLORE_AGAIN)
    kept = [(row["round"], row["phase"], row["step"]) for row in read_metrics(path)]
    assert kept == [(0, "explore", s) for s in range(1, 5)] + [(0, "consolidate", s) for s in range(1, 5)] + [
        (1, "explore", 1),
        (1, "explore", 2),
    ]
    assert history.rows == list(enumerate(read_metrics(path)))
    assert history.steps == 10
    logger_in(tmp_path, EXPLORE_AGAIN).log_metrics({"a": 30.0}, step=3)
    assert [row["a"] for row in read_metrics(path)][-3:] == [1.0, 2.0, 30.0]


def test_a_half_written_last_row_is_no_row(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("round,phase,step,a,b\n0,explore,1,1.5,2.5\n0,explore,2,1.5,2")
    assert [row["step"] for row in read_metrics(path)] == [1]


def test_the_rest_of_an_overwritten_row_is_no_row(tmp_path):
    """A kill between the write of a shorter row and the cut behind it leaves a line with too few cells."""
    path = tmp_path / "metrics.csv"
    path.write_text("round,phase,step,a,b\n0,explore,1,1.5,2.5\n23,0.25\n")
    assert read_metrics(path) == [{"round": 0, "phase": "explore", "step": 1, "a": 1.5, "b": 2.5}]


def test_a_call_writes_one_row_whatever_the_length_of_the_table(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = logger_in(tmp_path)
    logger.log_metrics({"a": 1.0}, step=1)
    inode = path.stat().st_ino
    for step in range(2, 50):
        logger.log_metrics({"a": float(step)}, step=step)
    assert path.stat().st_ino == inode  # a rewrite would have renamed another file over it
    logger.log_metrics({"b": 1.0}, step=50)
    assert path.stat().st_ino != inode
    assert len(read_metrics(path)) == 50


def test_rows_of_one_key_apart_from_each_other_are_read_as_one(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = logger_in(tmp_path)
    for step, metrics in [(1, {"a": 1.0, "b": 1.0}), (2, {"a": 2.0}), (1, {"b": 5.0})]:
        logger.log_metrics(metrics, step=step)
    assert [(row["step"], row.get("a"), row.get("b")) for row in read_metrics(path)] == [(1, 1.0, 5.0), (2, 2.0, None)]


def test_no_table_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "none.csv") == []
    logger_in(tmp_path).log_metrics({"epoch": 1}, step=1)
    assert not list(tmp_path.iterdir())


HEADER = "round,phase,step,a,b\n"
ROW = "0,explore,1,1.5,2.5\n"
NOT_TABLES = {
    "empty": ("", "line 1: there is no header"),
    "cut in its header": ("round,phase,st", "line 1: there is no header"),
    "of a stranger": (
        "name,points\nAda,3\n",
        "line 1: the columns don't begin with round, phase, step, but with name, points",
    ),
    "not text": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\n", "line 1: the columns don't begin with round, phase, step"),
    "NUL bytes": (HEADER + ROW + "\0" * 40 + "\n" + ROW, "line 3: 1 cells, for 5 columns"),
    "NUL bytes in a row": (HEADER + "0,explore,\0,1.5,2.5\n", "line 2: '\\\\x00' in the column step is not a number"),
    "NUL bytes in the header": ("round,phase,step,\0\n", "line 1: '\\x00' is not the name of a column"),
    "no number": (HEADER + ROW + "0,explore,2,1.5,terrible\n", "line 3: 'terrible' in the column b is not a number"),
    "an escape": (HEADER + "0,explore,2,1.5,\x1b[2J\n", "line 2: '\\\\x1b[2J' in the column b is not a number"),
    "no step": (HEADER + "0,explore,,1.5,2.5\n", "line 2: '' is not a step"),
    "half a step": (HEADER + "0,explore,1.5,1.5,2.5\n", "line 2: '1.5' is not a step"),
    "no phase": (HEADER + "0,explode,1,1.5,2.5\n", "line 2: 'explode' is not a phase"),
    "too many cells": (HEADER + "0,explore,1,1.5,2.5,3.5\n", "line 2: 6 cells, for 5 columns"),
    "a short row inside": (HEADER + "0,explore,1\n" + ROW, "line 2: 3 cells, for 5 columns"),
    "a column twice": ("round,phase,step,a,a\n", "line 1: there are two columns a"),
    "latin-1": (HEADER.encode() + b"0,expl\xf6re,1,1.5,2.5\n", "line 2: 'expl\ufffdre' is not a phase"),
    "a field without end": (
        HEADER + '0,explore,1,1.5,"' + "2" * 200_000 + "\n",
        "line 2: field larger than field limit",
    ),
}


@pytest.mark.parametrize("kind", NOT_TABLES)
def test_what_is_no_table_is_one_message_with_file_and_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    content, said = NOT_TABLES[kind]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="is damaged, or not the") as found:
        read_metrics(path)
    assert str(found.value).startswith(f"{path} is damaged, or not the metrics.csv of a run: {said}")
    assert isinstance(found.value, RunFault)  # so that rloop-fit shows it as a message
    with pytest.raises(ValueError, match="is damaged, or not the"):
        column(path, 0, "explore", "a")
    with pytest.raises(ValueError, match="is damaged, or not the"):
        logger_in(tmp_path)


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        self.log("loss/value", float(batch_idx) / 4)
        self.log("step", float(batch_idx + 1))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_trainer_logs_through_it(tmp_path):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, log_every_n_steps=1, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, logger=logger_in(tmp_path, Stage(2, "explore", "explored")),
    )  # fmt: skip
    trainer.fit(Module(), train_dataloaders=torch.utils.data.DataLoader(torch.zeros(3, 1)))
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"round": 2, "phase": "explore", "step": step, "loss/value": (step - 1) / 4} for step in (1, 2, 3)
    ]
