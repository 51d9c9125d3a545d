"""W&B (offline) and MLflow (local files) see one run over all rounds, also after a kill and a resume."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from builders import make_rollout
from killing import Kill
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from markdown_it import MarkdownIt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TinyRun, resume

from rloop_lightning.evaluation.samples import sample_completions
from rloop_lightning.run.logger_kinds import log_completions, named_for
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.types import Group, Problem

COLUMNS = ["problem_id", "prompt", "gold", "completion", "right", "reward", "tokens", "finish_reason"]


def written(folder: Path) -> TinyRun:
    """Two rounds with both loggers."""
    return TinyRun.written(
        folder,
        loop={"rounds": 2, "explore_steps": 3, "checkpoint_every_n_steps": 2},
        eval={"every_n_steps": 2, "sets": ["test", "ood"]},
        trainer={
            "logger": [
                {"class_path": "WandbLogger", "init_args": {"save_dir": str(folder / "users"), "offline": True}},
                {"class_path": "MLFlowLogger", "init_args": {"save_dir": str(folder / "users" / "mlflow")}},
            ]
        },
    )


@dataclass(frozen=True)
class Stop(Kill):
    """SIGTERM for this process alone: W&B's own process loses what it has not written yet when it gets a signal."""

    def strike(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in the second exploration, and resumed."""
    folder = tmp_path_factory.mktemp("trackers")
    (folder / "users").mkdir()
    out, log = folder / "run", folder / "log"
    assert written(folder).fit_apart(out, log, Stop("torch.optim:AdamW.step", 7)) == 143, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    return out


def expected(out: Path) -> list[dict[str, float]]:
    """By step of the run: what metrics.csv has, but for measured times, under the loggers' names."""
    rows = []
    for row in read_metrics(out / "metrics.csv"):
        prefix = "consolidate/" if row["phase"] == "consolidate" else ""
        named = {f"{prefix}{name}": value for name, value in row.items() if name not in ("round", "phase", "step")}
        rows.append({name: value for name, value in named.items() if "time/" not in name} | {"round": row["round"]})
    return rows


def evaluated(rows: list[dict[str, float]]) -> list[int]:
    return [step for step, row in enumerate(rows) if "eval/test/pass@1" in row]


def mlflow_run(out: Path) -> tuple[Any, Any]:
    """The client, and the only run of its store."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"file:{out.parent / 'users' / 'mlflow'}")
    (experiment,) = (one for one in client.search_experiments() if one.name == "lightning_logs")
    (found,) = client.search_runs([experiment.experiment_id])
    return client, found


def wandb_files(out: Path) -> list[Path]:
    return sorted((out.parent / "users" / "wandb").glob("offline-run-*/*.wandb"))


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a W&B file, a log as LevelDB's: blocks of 32 KiB, in them parts with a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, parts = path.read_bytes(), 7, b""
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_values(items: Sequence[Any]) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_wandb_has_one_run_with_every_step_once_and_the_settings(run: Path) -> None:
    files = [[*wandb_records(path)] for path in wandb_files(run)]
    assert len(files) == 2  # the second is the resume's
    assert len({record.run.run_id for records in files for record in records if record.HasField("run")}) == 1
    history = [
        wandb_values(record.history.item) for records in files for record in records if record.HasField("history")
    ]
    metrics = [row for row in history if not any(name.startswith("completions/") for name in row)]
    rows = expected(run)
    assert [row["trainer/global_step"] for row in metrics] == list(range(len(rows)))
    for row, want in zip(metrics, rows, strict=True):
        assert {name: row[name] for name in want} == pytest.approx(want, nan_ok=True)
    configs = [
        wandb_values(record.config.update) for records in files for record in records if record.HasField("config")
    ]
    assert [config["algo.lr"] for config in configs if "algo.lr" in config] == [1e-4]


def test_wandb_has_a_table_of_completions_for_every_evaluation(run: Path) -> None:
    for name in ("test", "ood"):
        found = {}
        for path in wandb_files(run):
            for record in wandb_records(path):
                row = wandb_values(record.history.item) if record.HasField("history") else {}
                if (file := row.get(f"completions/{name}.path")) is not None:
                    found[row["trainer/global_step"]] = json.loads((path.parent / "files" / file).read_text())
        assert list(found) == evaluated(expected(run))
        assert all(table["columns"] == COLUMNS for table in found.values())
        assert all(1 <= len(table["data"]) <= 8 for table in found.values())


def test_mlflow_has_one_run_with_every_step_once_and_the_settings(run: Path) -> None:
    client, found = mlflow_run(run)
    rows = expected(run)
    for name in {name for row in rows for name in row}:
        points = client.get_metric_history(found.info.run_id, name.replace("@", "_at_"))
        want = {step: row[name] for step, row in enumerate(rows) if name in row}
        assert sorted(point.step for point in points) == list(want), name
        assert {point.step: point.value for point in points} == pytest.approx(want, nan_ok=True), name
    assert found.data.params["algo.lr"] == "0.0001"
    assert found.data.params["loop.explore_steps"] == "3"
    assert found.info.status == "FINISHED"


def test_mlflow_has_a_table_of_completions_for_every_evaluation(run: Path, tmp_path: Path) -> None:
    client, found = mlflow_run(run)
    for name in ("test", "ood"):
        files = sorted(one.path for one in client.list_artifacts(found.info.run_id, f"completions/{name}"))
        assert files == [f"completions/{name}/step-{step:06d}.json" for step in evaluated(expected(run))]
        table = json.loads(Path(client.download_artifacts(found.info.run_id, files[0], str(tmp_path))).read_text())
        assert table["columns"] == COLUMNS
        assert {row[COLUMNS.index("right")] for row in table["data"]} <= {True, False}
    shown = json.loads(found.data.tags["mlflow.loggedArtifacts"])  # what the page of the run shows as tables
    assert {one["path"] for one in shown if one["type"] == "table"} >= set(files)


def test_tensorboard_has_the_completions_too(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    texts = events.Tensors("completions/test/text_summary")
    assert [text.step for text in texts] == evaluated(expected(run))
    (content,) = texts[0].tensor_proto.string_val
    assert content.decode().startswith(f"| {' | '.join(COLUMNS)} |")


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("eval/test/pass@8_low", "eval/test/pass_at_8_low"),
        ("rollout/similarity_intra_step", "rollout/similarity_intra_step"),
        ("eval//data/my set (1).jsonl/pass@1", "eval/data/my set _1_.jsonl/pass_at_1"),
        ("eval/../../etc/./pass@1", "eval/etc/pass_at_1"),
        ("eval/Prüfung/pass@1", "eval/Pr_fung/pass_at_1"),
    ],
)
def test_mlflow_takes_the_name_of_every_metric(name: str, taken: str, tmp_path: Path) -> None:
    logger = MLFlowLogger(save_dir=str(tmp_path))
    logger.log_metrics(named_for(logger, {name: 0.5}), step=3)
    (point,) = logger.experiment.get_metric_history(logger.run_id, taken)
    assert (point.step, point.value) == (3, 0.5)
    assert named_for(CSVLogger(tmp_path), {name: 0.5}) == {name: 0.5}


def test_a_long_name_loses_its_middle_in_mlflow(tmp_path: Path) -> None:
    logger = MLFlowLogger(save_dir=str(tmp_path))
    (name,) = named_for(logger, {f"eval/{'long/' * 80}pass@1": 0.5})
    assert name.startswith("eval/long/")
    assert name.endswith("/pass_at_1")
    logger.log_metrics({name: 0.5}, step=0)


HOSTILE = "<script>alert(1)</script> | [x](javascript:alert(1)) \u202e \x1b[31m" + "a" * 10_000 + "END"


def test_completions_are_a_right_and_a_wrong_one_of_the_first_problems_shortened_and_harmless() -> None:
    rollouts = [replace(make_rollout("p", reward=float(g == 2)), text=f"{g} {HOSTILE}") for g in range(4)]
    problem = Problem("p", "x" * 5000 + "?", "42")
    samples = sample_completions([Group(problem, tuple(rollouts))] * 6)
    assert [(one.right, one.completion[0]) for one in samples] == [(True, "2"), (False, "0")] * 4
    (first, *_) = samples
    assert len(first.completion) < 3200
    assert first.completion.endswith("aEND")
    assert "\\u202e" in first.completion
    assert "\x1b" not in first.completion
    assert (first.prompt[-2:], len(first.prompt), first.gold) == ("x?", 1000, "42")


def test_no_text_acts_as_markdown_in_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "run")
    rollout = replace(make_rollout("p"), text=HOSTILE)
    log_completions(logger, "test", sample_completions([Group(Problem("p", "?", "!"), (rollout,))]), 5)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    ((text,),) = [events.Tensors(tag) for tag in events.Tags()["tensors"]]
    page = MarkdownIt().enable("table").render(text.tensor_proto.string_val[0].decode())
    assert page.count("<tr>") == 2
    assert "<script" not in page
    assert "<a" not in page


def test_a_second_run_in_one_process_is_another_run_in_wandb(tiny: TinyRun, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.mkdir()
    arguments = [
        "--trainer.logger=WandbLogger",
        f"--trainer.logger.init_args.save_dir={users}",
        "--trainer.logger.init_args.offline=true",
        "--consolidate=none",
        "--loop.explore_steps=1",
        "--debug",
    ]
    assert [tiny.fit(tmp_path / f"run-{number}", *arguments) for number in range(2)] == [0, 0]
    ids = list[set[str]]()
    for _ in range(100):  # W&B's service writes a run's file after it has told that the run is over
        ids = [
            {record.run.run_id for record in wandb_records(path) if record.HasField("run")}
            for path in wandb_files(tmp_path / "run-0")
        ]
        if all(ids):
            break
        time.sleep(0.1)
    assert len(ids) == 2
    assert len(set.union(*ids)) == 2
