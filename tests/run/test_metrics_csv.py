"""The run's table: rows merged, columns added, kills survived; through Lightning's own calls where it matters."""

import csv
import math

import lightning as L
import torch

from rloop_lightning.run.metrics_csv import RunMetrics, read_metrics


def lines(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_calls_for_one_step_become_one_row_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = RunMetrics(path, 0, "explore")
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
    logger = RunMetrics(path, 0, "explore")
    logger.log_metrics({"a": 0.12345678901234}, step=1)
    logger.log_metrics({"a": 1.0}, step=1)
    assert path.read_text() == "round,phase,step,a\n0,explore,1,1.0\n"


def test_a_new_column_keeps_the_rows_of_other_phases(tmp_path):
    path = tmp_path / "metrics.csv"
    RunMetrics(path, 0, "explore").log_metrics({"a": 1.0}, step=5)
    RunMetrics(path, 0, "consolidate").log_metrics({"b": 2.0}, step=1)
    RunMetrics(path, 1, "explore").log_metrics({"a": 3.0, "c": 4.0}, step=1)
    assert read_metrics(path) == [
        {"round": 0, "phase": "explore", "step": 5, "a": 1.0},
        {"round": 0, "phase": "consolidate", "step": 1, "b": 2.0},
        {"round": 1, "phase": "explore", "step": 1, "a": 3.0, "c": 4.0},
    ]
    assert lines(path)[0] == ["round", "phase", "step", "a", "b", "c"]


def test_floats_keep_every_digit_and_tensors_and_nan_are_taken(tmp_path):
    path = tmp_path / "metrics.csv"
    value = 0.1 + 0.2
    RunMetrics(path, 0, "explore").log_metrics(
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
    for round, phase in [(0, "explore"), (0, "consolidate"), (1, "explore")]:
        logger = RunMetrics(path, round, phase)
        for step in range(1, 5):
            logger.log_metrics({"a": float(step)}, step=step)
    logger = RunMetrics(path, 1, "explore", keep_before=3)
    kept = [(row["round"], row["phase"], row["step"]) for row in read_metrics(path)]
    assert kept == [(0, "explore", s) for s in range(1, 5)] + [(0, "consolidate", s) for s in range(1, 5)] + [
        (1, "explore", 1),
        (1, "explore", 2),
    ]
    logger.log_metrics({"a": 30.0}, step=3)
    assert [row["a"] for row in read_metrics(path)][-3:] == [1.0, 2.0, 30.0]


def test_a_half_written_last_row_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("round,phase,step,a,b\n0,explore,1,1.5,2.5\n0,explore,2,1.5,2")
    assert [row["step"] for row in read_metrics(path)] == [1]
    RunMetrics(path, 0, "explore", keep_before=10).log_metrics({"a": 3.0}, step=3)
    assert lines(path)[1:] == [["0", "explore", "1", "1.5", "2.5"], ["0", "explore", "3", "3.0", ""]]


def test_the_rest_of_an_overwritten_row_is_no_row(tmp_path):
    """A kill between the write of a shorter row and the cut behind it leaves a line with too few cells."""
    path = tmp_path / "metrics.csv"
    path.write_text("round,phase,step,a,b\n0,explore,1,1.5,2.5\n23,0.25\n")
    assert read_metrics(path) == [{"round": 0, "phase": "explore", "step": 1, "a": 1.5, "b": 2.5}]


def test_a_call_writes_one_row_whatever_the_length_of_the_table(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = RunMetrics(path, 0, "explore")
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
    logger = RunMetrics(path, 0, "explore")
    for step, metrics in [(1, {"a": 1.0, "b": 1.0}), (2, {"a": 2.0}), (1, {"b": 5.0})]:
        logger.log_metrics(metrics, step=step)
    assert [(row["step"], row.get("a"), row.get("b")) for row in read_metrics(path)] == [(1, 1.0, 5.0), (2, 2.0, None)]


def test_no_table_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "none.csv") == []
    RunMetrics(tmp_path / "none.csv", 0, "explore").log_metrics({"epoch": 1}, step=1)
    assert not (tmp_path / "none.csv").exists()


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
        enable_model_summary=False, logger=RunMetrics(tmp_path / "metrics.csv", 2, "explore"),
    )  # fmt: skip
    trainer.fit(Module(), train_dataloaders=torch.utils.data.DataLoader(torch.zeros(3, 1)))
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"round": 2, "phase": "explore", "step": step, "loss/value": (step - 1) / 4} for step in (1, 2, 3)
    ]
