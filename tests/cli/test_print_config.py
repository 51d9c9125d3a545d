"""`--print_config` prints a file from which `--config` makes the same settings, or says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from problem_files import write_rows

from rloop_lightning.algorithms import ALGORITHMS
from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.main import main
from rloop_lightning.cli.printing import config_text

FILES = ["--data", "train.jsonl", "--data.eval", '{"test": "test.jsonl"}', "--policy.model", "elsewhere"]
BOX = '{"box": "rloop_lightning.rewards.weighted.BoxFormat"}'
FLAGS = ["", "skip_default", "skip_null,comments"]
SETTINGS = [
    *(["--algo", name, "--algo.lr", "3e-5"] for name in ALGORITHMS),
    ["--consolidate", "none", "--seed_everything", "7", "--out", "elsewhere"],
    ["--consolidate.epochs", "5", "--loop.rounds", "4", "--policy.model", "elsewhere"],
    [*FILES, "--data.instruction", "Think: {step} by step.\nThen answer.", "--reward", "reward_functions.boxed"],
    [*FILES, "--reward", "math", "--data.template", "# {problem}"],
    ["--data", "organisation/name@v1:main:train", "--policy.model", "elsewhere"],
    ["--reward", "weighted", "--reward.rewards", BOX, "--reward.success", "box"],
    ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=01:00:00:00", "--trainer.precision", "bf16-mixed"],
    ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--eval.k", "[1,4]"],
    ["--algo.optimizer", "torch.optim.SGD", "--algo.optimizer_options", '{"momentum": 0.9}'],
]


def printed(arguments: list[str], flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        RLoopCLI([*arguments, f"--print_config={flags}" if flags else "--print_config"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def settings_of(cli: RLoopCLI) -> dict[str, Any]:
    return {name: value for name, value in cli.config.as_dict().items() if name != "config"}


@pytest.mark.parametrize("arguments", SETTINGS, ids=" ".join)
def test_what_is_printed_is_read_to_the_same_settings(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "test"):
        write_rows(tmp_path / f"{name}.jsonl")
    cli = RLoopCLI(arguments)
    for flags in FLAGS:
        file = tmp_path / "printed.yaml"
        file.write_text(config_text(cli.parser, cli.config, flags))
        assert settings_of(RLoopCLI(["--config", str(file)])) == settings_of(cli)


def test_the_names_of_parts_are_always_there(capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load(printed(["--policy.model", "x", "--algo", "minirl"], "skip_default", capsys))
    assert settings == {
        "algo": {"name": "minirl"},
        "consolidate": {"name": "rft"},
        "engine": {"name": "torch"},
        "data": {"name": "countdown"},
        "reward": {"name": "countdown"},
        "policy": {"model": "x"},
    }


def test_comments_are_the_help_of_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(["--policy.model", "x", "--loop.rounds", "2"], "skip_default,comments", capsys)
    assert "\nloop:\n  # rounds of exploration and consolidation. Without consolidation," in shown
    assert "\n  rounds: 2\n" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--loop.roundz", "3"], "--loop.roundz: no such option"),
        (["--loop.rounds", "three"], "--loop.rounds: expected an integer > 0, got 'three'"),
        (["--eval.samples", "2"], "--eval.k must lie between 1 and --eval.samples (2)"),
        (["--algo", "dapoo"], "--algo: unknown name 'dapoo'"),
        (["--config", "none.yaml"], "--config: no file 'none.yaml'"),
        (["--trainer.max_steps", "3"], "--trainer.max_steps: the loop sets this itself; leave it out, and give --loop"),
    ],
)
@pytest.mark.parametrize("flags", ["", "=skip_default"])
def test_a_wrong_option_is_an_error(
    arguments: list[str], said: str, flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, f"--print_config{flags}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"rloop-fit: error: {said}" in captured.err


def test_an_unknown_flag_is_an_error() -> None:
    with pytest.raises(UsageError, match="--print_config: no flag 'skip_defaults'; take skip_default, skip_null"):
        RLoopCLI(["--print_config=skip_defaults"])


def test_print_shtab_trains_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rloop_lightning.cli.printing.find_spec", lambda name: None)
    for arguments, said in (
        (["--print_shtab", "bash"], "--print_shtab needs the package shtab: pip install shtab"),
        (["--print_shtab", "fish"], "--print_shtab: expected bash, zsh, tcsh, got 'fish'"),
        (["--print_shtab"], "--print_shtab needs a value"),
        (["--print_shtab=bash", "--loop.rounds", "x"], "--loop.rounds: expected an integer > 0, got 'x'"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
