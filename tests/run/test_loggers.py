"""TensorBoard and the loggers of `--trainer.logger` see one run: over rounds, phases and resumes."""

from __future__ import annotations

import csv
from importlib import import_module
from pathlib import Path

import pytest
from killing import Kill, run_fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TinyRun, resume

from rloop_lightning.run.metrics_csv import read_metrics

UPDATE = "torch.optim:AdamW.step"
NLL = "rloop_lightning.algorithms.rft:negative_log_likelihood"


def written(folder: Path) -> TinyRun:
    """Two rounds, with a CSVLogger, a TensorBoardLogger and a callback that logs by itself."""
    return TinyRun.written(
        folder,
        loop={"rounds": 2, "explore_steps": 3, "checkpoint_every_n_steps": 2},
        eval={"every_n_steps": 2},
        trainer={
            "logger": [
                {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder / "users")}},
                {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(folder / "users"), "name": "board"}},
            ],
            "callbacks": [{"class_path": "LearningRateMonitor"}],
        },
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return written(folder).finished(folder / "run")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed three times, the last time before it had repeated what the second kill lost."""
    folder = tmp_path_factory.mktemp("killed")
    out, log = folder / "run", folder / "log"
    assert written(folder).fit_apart(out, log, Kill(UPDATE, 3)) == -9, log.read_text()
    assert resume(out, log, Kill(NLL, 4)) == -9, log.read_text()
    assert resume(out, log, Kill(NLL, 1)) == -9, log.read_text()
    assert resume(out, log) == 0, log.read_text()
    return out


def board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every scalar that TensorBoard shows, by name."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def csv_rows(run: Path) -> list[dict[str, str]]:
    """The user's CSV file, with the rows of one step joined, and their steps in the file's order."""
    (path,) = (run.parent / "users" / "lightning_logs").glob("*/metrics.csv")
    with path.open(newline="") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert [int(row["step"]) for row in rows] == sorted(int(row["step"]) for row in rows)
    joined: dict[str, dict[str, str]] = {}
    for row in rows:
        assert not joined.get(row["step"], {}).keys() & row.keys() - {"step"}, f"step {row['step']} came twice"
        joined.setdefault(row["step"], {}).update(row)
    return list(joined.values())


def expected(run: Path) -> list[dict[str, float]]:
    """What every logger has to have, by step of the run."""
    rows = []
    for row in read_metrics(run / "metrics.csv"):
        prefix = "consolidate/" if row["phase"] == "consolidate" else ""
        metrics = {name: value for name, value in row.items() if name not in ("round", "phase", "step")}
        rows.append({**{f"{prefix}{name}": value for name, value in metrics.items()}, "round": row["round"]})
    return rows


def from_callbacks(name: str) -> bool:
    """Metrics that Lightning's callback logs by itself, under names of its own."""
    return name.removeprefix("consolidate/").startswith("lr-")


@pytest.mark.parametrize("run", ["whole", "killed"])
@pytest.mark.parametrize("place", ["tensorboard", "../users/board/version_0"])
def test_tensorboard_shows_all_metrics_at_steps_that_only_rise(
    run: str, place: str, request: pytest.FixtureRequest
) -> None:
    out: Path = request.getfixturevalue(run)
    scalars = board(out / place)
    rows = expected(out)
    for name in {name for row in rows for name in row if not from_callbacks(name)}:
        want = [(step, row[name]) for step, row in enumerate(rows) if name in row]
        assert [step for step, _ in scalars[name]] == [step for step, _ in want], name
        if not name.startswith("time/"):
            assert [value for _, value in scalars[name]] == pytest.approx([value for _, value in want]), name
    assert [step for step, _ in scalars["round"]] == list(range(len(rows)))
    # Logged at the start of a phase, by the callback itself: a resume may repeat it in the user's logger.
    rates = [step for step, _ in scalars["lr-AdamW/pg1"]]
    assert rates == sorted(set(rates) if place == "tensorboard" else rates)
    assert rates[0] == 1
    assert set(rates) <= {step for step, row in enumerate(rows) if {"train/lr", "consolidate/train/lr"} & row.keys()}


@pytest.mark.parametrize("run", ["whole", "killed"])
def test_a_csv_logger_is_one_file_with_every_step_once(run: str, request: pytest.FixtureRequest) -> None:
    out: Path = request.getfixturevalue(run)
    rows, want = csv_rows(out), expected(out)
    assert [int(row["step"]) for row in rows] == list(range(len(want)))
    for row, wanted in zip(rows, want, strict=True):
        for name, value in wanted.items():
            if not from_callbacks(name) and "time/" not in name:
                assert float(row[name]) == pytest.approx(value), (row["step"], name)


def test_evaluations_and_the_expert_set_are_in_all_loggers(whole: Path) -> None:
    scalars = board(whole / "tensorboard")
    assert len(scalars["eval/test/pass@1"]) == 1 + 2 * 3  # the base; two policies and one inside, each round
    assert len(scalars["expert/rollouts"]) == 2
    assert "consolidate/train/loss" in scalars
    assert len(scalars["train/loss"]) == 6


def test_settings_are_logged_once_under_the_names_of_the_flags(killed: Path) -> None:
    events = EventAccumulator(str(killed / "tensorboard"))
    events.Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"algo.lr" in content
    assert b"loop.explore_steps" in content
    for folder in ("lightning_logs", "board"):
        hparams = (killed.parent / "users" / folder / "version_0" / "hparams.yaml").read_text()
        assert "\nalgo.lr: 0.0001\n" in hparams
        assert [path.name for path in (killed.parent / "users" / folder).iterdir()] == ["version_0"]


def test_a_killed_run_has_the_metrics_of_a_whole_one(whole: Path, killed: Path) -> None:
    ours, theirs = board(killed / "tensorboard"), board(whole / "tensorboard")
    names = {name for name in theirs if "time/" not in name and not from_callbacks(name)}
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


def test_a_resume_with_other_settings_logs_the_steps_that_it_repeats(tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    # Killed after the third step, which was logged. The newest checkpoint is that of the second.
    assert written(tmp_path).fit_apart(out, log, Kill("os:replace", 1, "round-0/explore/policy")) == -9
    assert run_fit(["--resume", str(out), "--gradient.stop_above=1e-9"], log) == 0, log.read_text()
    for place in ("tensorboard", "../users/board/version_0"):
        assert dict(board(out / place)["grad/skipped_updates"])[3] == 1, place
    assert float(csv_rows(out)[3]["grad/skipped_updates"]) == 1


def test_without_a_logger_there_is_no_tensorboard(tiny: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert tiny.fit(out, "--trainer.logger=false", "--loop.explore_steps=1", "--consolidate=none", "--debug") == 0
    assert not (out / "tensorboard").exists()
    assert len(read_metrics(out / "metrics.csv")) == 3


@pytest.mark.parametrize(("logger", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_a_missing_package_of_a_logger_is_one_line(
    logger: str,
    package: str,
    tiny: TinyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, name = import_module(f"lightning.pytorch.loggers.{package}"), f"_{package.upper()}_AVAILABLE"
    missing = type(getattr(module, name))(f"{package}>=99999")  # also where it is installed
    monkeypatch.setattr(module, name, missing)
    assert tiny.fit(tmp_path / "run", f"--trainer.logger={logger}") == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert f"--trainer.logger: {logger} needs the package {package}: pip install {package}" in said
    assert not (tmp_path / "run").exists()
