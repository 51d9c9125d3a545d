"""Every flag of Lightning's Trainer does what it says over a whole run, or is refused by name."""

from __future__ import annotations

import csv
import functools
import inspect
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import yaml
from lightning.pytorch import loggers
from tiny_run import TinyRun

from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.main import main
from rloop_lightning.cli.trainer_flags import REFUSED

# Values other than Lightning's defaults.
OTHER_VALUES = {
    "max_epochs": "3",
    "min_epochs": "2",
    "max_steps": "10",
    "min_steps": "10",
    "max_time": "00:00:01:00",
    "fast_dev_run": "true",
    "limit_train_batches": "3",
    "overfit_batches": "0.5",
    "limit_val_batches": "1",
    "limit_test_batches": "1",
    "limit_predict_batches": "1",
    "val_check_interval": "10",
    "check_val_every_n_epoch": "2",
    "num_sanity_val_steps": "1",
    "inference_mode": "false",
    "accumulate_grad_batches": "2",
    "gradient_clip_val": "0.5",
    "gradient_clip_algorithm": "value",
    "barebones": "true",
    "plugins": "AsyncCheckpointIO",
    "sync_batchnorm": "true",
    "model_registry": "me/model",
    "enable_checkpointing": "false",
    "default_root_dir": "elsewhere",
    "enable_model_summary": "true",
    "log_every_n_steps": "10",
    "use_distributed_sampler": "false",
    "reload_dataloaders_every_n_epochs": "1",
}
TAKEN = {
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "precision",
    "logger",
    "callbacks",
    "enable_progress_bar",
    "deterministic",
    "benchmark",
    "profiler",
    "detect_anomaly",
    "enable_autolog_hparams",
}
Said = Callable[..., str]
NO_MODEL = "rloop_lightning.cli.fit.Policy.load"


def test_every_flag_is_refused_or_taken() -> None:
    flags = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    assert set(OTHER_VALUES) | TAKEN == flags
    assert set(OTHER_VALUES) == set(REFUSED)
    assert set(RLoopCLI([]).config.trainer.keys()) == TAKEN


@pytest.fixture
def wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Said:
    """What the command says of wrong input; it loads no model and writes nothing."""
    monkeypatch.setattr(NO_MODEL, None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def said(*arguments: str) -> str:
        assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    return said


def test_a_refused_flag_is_named_with_what_to_do(wrong: Said) -> None:
    given = [f"--trainer.{name}={value}" for name, value in OTHER_VALUES.items()]
    said = wrong(*given).splitlines()
    assert [line for line in said if not line.startswith("rloop-fit: error: --trainer.")] == []
    for name, message in REFUSED.items():
        assert f"rloop-fit: error: --trainer.{name}: {message}" in said
    assert len(said) == len(REFUSED)


def test_a_refused_flag_in_a_file_is_named_with_the_file(wrong: Said, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("trainer: {fast_dev_run: 3, max_epochs: null, barebones: false}\n")
    said = wrong("--config", str(file)).splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"rloop-fit: error: --config {file}: trainer.fast_dev_run: for a short run, give --loop.")


def test_lightnings_own_default_of_a_refused_flag_changes_nothing() -> None:
    flags = ["--trainer.max_steps=-1", "--trainer.fast_dev_run", "false", "--trainer.max_time=null"]
    assert RLoopCLI(flags).config.trainer == RLoopCLI([]).config.trainer


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--trainer.accelerator tpu", "--trainer.accelerator tpu is not supported; take cpu or gpu"),
        ("--trainer.accelerator mps", "--trainer.accelerator mps is not supported; take cpu or gpu"),
        ("--trainer.accelerator hpu", "--trainer.accelerator hpu is not supported; take cpu or gpu"),
        ("--trainer.accelerator gpu", "finds no CUDA GPU; install a driver and a CUDA build of PyTorch, or take cpu"),
        ("--trainer.strategy fsdp", "--trainer.strategy fsdp is not supported: FSDP1 and DeepSpeed keep weights where"),
        ("--trainer.devices [0,1]", "--trainer.devices [0, 1]: `devices` selected with `CPUAccelerator`"),
        ("--trainer.devices 0", "--trainer.devices 0: `Trainer(devices='0')` value is not a valid input"),
        ("--trainer.devices some", "--trainer.devices some: `devices` selected with `CPUAccelerator`"),
        ("--trainer.num_nodes 2", "--trainer.num_nodes 2: torchrun or srun starts the processes of other machines"),
        ("--trainer.precision 16", "--trainer.precision 16 is not supported; take 32-true or bf16-mixed"),
        ("--trainer.precision transformer-engine", "--trainer.precision transformer-engine is not supported"),
        ("--trainer.profiler xla", "--trainer.profiler xla is not known; take simple, advanced, pytorch"),
        ("--trainer.deterministic maybe", "--trainer.deterministic: expected true or false or warn or null"),
        ("--trainer.logger NoLogger", "--trainer.logger: no class of the name 'NoLogger' is known; give its import"),
        ("--trainer.logger CSVLogger", "the following arguments are required: save_dir"),
        ("--trainer.callbacks=EarlyStopping", "the following arguments are required: monitor"),
        ("--trainer.callbacks+=BatchSizeFinder", "--trainer.callbacks: BatchSizeFinder can't work here"),
        ("--trainer.callbacks+=SpikeDetection", "--trainer.callbacks: SpikeDetection can't work here"),
        ("--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.save_top_k=-7", "Invalid value for save_top_k=-7"),
    ],
)
def test_a_wrong_value_is_told_in_one_line_before_anything_is_loaded(arguments: str, said: str, wrong: Said) -> None:
    (line,) = wrong(*arguments.split()).splitlines()
    assert line.startswith(f"rloop-fit: error: {arguments.split()[0].split('=')[0].split('+')[0]}")
    assert said in line


@pytest.mark.parametrize(
    ("logger", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow"), ("CometLogger", "comet-ml")]
)
@pytest.mark.parametrize("prefix", ["", "lightning.pytorch.loggers."])
def test_a_missing_logger_package_is_one_line(
    logger: str, package: str, prefix: str, wrong: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    @functools.wraps(getattr(loggers, logger).__init__)  # what is known of its options is kept for the tests behind
    def missing(self: object, *args: object, **kwargs: object) -> None:
        raise ModuleNotFoundError(f"Requirement '{package}>=1.0' not met. HINT: Try `pip install -U '{package}>=1.0'`")

    monkeypatch.setattr(f"lightning.pytorch.loggers.{logger}.__init__", missing)
    assert wrong("--trainer.logger", prefix + logger) == (
        f"rloop-fit: error: --trainer.logger: {logger} needs the package {package}: pip install {package}\n"
    )


def test_an_environment_variable_of_lightning_is_refused(wrong: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "3")
    said = wrong()
    assert "PL_TRAINER_MAX_STEPS is set: Lightning would take it for an option; unset it" in said


def test_the_profiler_of_a_name_writes_into_the_folder_of_each_phase(tiny: TinyRun, tmp_path: Path) -> None:
    assert tiny.fit(tmp_path / "run", "--trainer.profiler", "simple", "--trainer.detect_anomaly", "true") == 0
    for phase in ("explore", "consolidate"):
        (file,) = (tmp_path / "run" / "round-0" / phase).glob("*profile*")
        assert "run_training_batch" in file.read_text()


def test_no_logger_means_no_tensorboard_and_no_bar_no_bar(
    tiny: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    off = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    assert tiny.fit(run, *off, "--trainer.callbacks+=Timer", "--trainer.callbacks.duration=01:00:00:00") == 0
    assert list(run.rglob("events.out.tfevents*")) == []
    assert len(list(csv.reader((run / "metrics.csv").open()))) > 4
    assert " explore " not in capsys.readouterr().err
    (timer,) = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    assert timer["init_args"] == {"duration": "01:00:00:00", "interval": "step", "verbose": True}
