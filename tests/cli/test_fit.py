"""The command line: from arguments to objects, and what it says about wrong ones. No model is loaded here."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import rloop_lightning
from rloop_lightning.algorithms.average import Average
from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.config_files import INSTEAD
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.main import main
from rloop_lightning.cli.presets import preset_folder, preset_names


def parse(*arguments: str) -> RLoopCLI:
    return RLoopCLI(arguments)


def usage_error(*arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*arguments)
    return str(caught.value)


def test_the_defaults_are_rloop_on_the_embedded_policy() -> None:
    cli = parse()
    assert isinstance(cli.parts.algorithm, DAPO)
    assert isinstance(cli.parts.consolidation, Average)
    assert cli.policy_config.model == "countdown"


def test_a_short_name_and_a_class_path_are_the_same() -> None:
    by_name = parse("--algo", "dapo", "--algo.clip_eps_high", "0.3")
    by_path = parse("--algo=rloop_lightning.algorithms.dapo.DAPO", "--algo.clip_eps_high=0.3")
    assert type(by_name.parts.algorithm) is type(by_path.parts.algorithm) is DAPO
    assert by_name.parts.algorithm.clip_eps_high == by_path.parts.algorithm.clip_eps_high == 0.3


def test_consolidate_none_makes_no_consolidation() -> None:
    assert parse("--consolidate", "none").parts.consolidation is None


def test_a_later_config_wins_over_an_earlier_one_and_the_command_line_over_both(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("loop: {rounds: 4, explore_steps: 5}\nalgo: {name: dapo, lr: 1e-3}\n")
    second.write_text("loop: {explore_steps: 6}\n")
    cli = parse("--config", str(first), "--config", str(second), "--algo.lr", "0.5")
    assert (cli.parts.loop.rounds, cli.parts.loop.explore_steps) == (4, 6)
    assert cli.parts.algorithm.lr == 0.5


def test_without_config_and_model_the_countdown_preset_holds_and_with_a_model_it_does_not() -> None:
    preset = yaml.safe_load((preset_folder() / "countdown.yaml").read_text())
    assert parse().parts.loop.explore_steps == preset["loop"]["explore_steps"]
    assert parse("--policy.model", "elsewhere").parts.loop.explore_steps == 200


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_parses_and_all_its_fields_are_taken(preset: str) -> None:
    cli = parse("--config", preset, "--trainer.accelerator", "cpu")
    for group, fields in yaml.safe_load((preset_folder() / f"{preset}.yaml").read_text()).items():
        fields = dict(fields) if isinstance(fields, dict) else {}
        for other, values in fields.pop(INSTEAD, {}).items():
            chosen = parse("--config", preset, "--trainer.accelerator", "cpu", f"--{group}", other)
            assert {name: chosen.config[group][name] for name in values} == {
                name: float(values[name]) for name in values
            }
        for name, value in fields.items():
            taken = cli.config[group][name]
            if isinstance(value, dict):
                assert {key: taken[key] for key in value} == value
            elif (group, name) != ("trainer", "accelerator"):
                expected = float(value) if isinstance(taken, float) else value
                assert (list(taken) if isinstance(taken, tuple) else taken) == expected


def test_another_algorithm_keeps_the_fields_of_a_config_that_it_has_and_forgets_the_others(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("algo: {name: dapo, lr: 0.25, dual_clip: 3.0}\n")
    cli = parse("--config", str(config), "--algo", "cli.test_cli_algorithms.WithoutClip")
    assert cli.parts.algorithm.lr == 0.25
    assert not hasattr(cli.parts.algorithm, "dual_clip")


def test_print_config_gives_a_file_that_parses_to_the_same_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--algo.lr", "0.125", "--consolidate", "none", "--print_config")
    assert ended.value.code == 0
    config = tmp_path / "printed.yaml"
    config.write_text(capsys.readouterr().out)
    again = parse("--config", str(config))
    assert again.parts.algorithm.lr == 0.125
    assert again.parts.consolidation is None


def test_every_option_of_ours_has_a_help_text() -> None:
    parser = parse().parser
    options = [action for action in parser._actions if action.option_strings]
    bare = [action.option_strings for action in options if not (action.help or "").strip()]
    assert [flags for flags in bare if not flags[0].startswith("--trainer")] == []


def test_help_shows_the_fields_of_the_chosen_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help_all")
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "--algo.clip_eps_high" in shown
    assert "gets no gradient once its ratio exceeds 1 + clip_eps_high" in shown


def test_trainer_flags_reach_the_trainer() -> None:
    cli = parse("--trainer.detect_anomaly", "true", "--trainer.precision", "bf16-mixed")
    trainer = cli.make_trainer(max_epochs=1)
    assert trainer._detect_anomaly
    assert trainer.precision == "bf16-mixed"


def test_two_trainers_share_no_callback() -> None:
    cli = parse("--trainer.callbacks+=Timer")
    first, second = cli.make_trainer(max_epochs=1), cli.make_trainer(max_epochs=1)
    timers = [[c for c in t.callbacks if type(c).__name__ == "Timer"] for t in (first, second)]
    assert [len(found) for found in timers] == [1, 1]
    assert timers[0][0] is not timers[1][0]


def test_all_wrong_settings_are_named_at_once() -> None:
    message = usage_error("--algo.clip_eps_low", "-0.1", "--loop.rounds", "0", "--eval.k", "[64]", "--algo.lr=-1")
    assert "--algo.clip_eps_low: expected a number > 0 and < 1, got -0.1" in message
    assert "--algo.lr: expected a number > 0, got -1" in message
    assert "--loop.rounds: expected an integer > 0, got 0" in message
    assert "--eval.k must lie between 1 and --eval.samples (32), got [64]" in message


def test_what_does_not_fit_together_is_named_at_once() -> None:
    cli = parse("--loop.problems_per_step", "301", "--loop.rollouts_per_problem", "1", "--eval.sets", "[nowhere]")
    with pytest.raises(UsageError) as caught:
        cli.prepare()
    message = str(caught.value)
    assert "--loop.problems_per_step 301 exceeds the 300 training problems" in message
    assert "--loop.rollouts_per_problem must be at least 2 for DAPO, got 1" in message
    assert "--eval.sets: the data has no set 'nowhere'" in message


def test_unknown_names_come_with_a_suggestion() -> None:
    assert "did you mean dapo?" in usage_error("--algo", "dapoo")
    assert "presets are" in usage_error("--config", "nonesuch")
    assert "is not a subclass" in usage_error("--algo", "rloop_lightning.algorithms.rft.RFT")


def test_errors_exit_with_2_and_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["--loop.rounds", "0", "--out", str(out)]) == 2
    assert "rloop-fit: error: --loop.rounds: expected an integer > 0, got 0" in capsys.readouterr().err
    assert main(["--resume", str(out)]) == 2
    assert not out.exists()


def test_a_run_folder_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state.json").write_text("{}")
    assert main(["--out", str(tmp_path)]) == 2
    assert f"--resume {tmp_path}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "state.json"]


def test_an_algorithm_of_an_installed_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "unknown name 'theirs'" in usage_error("--algo", "theirs")
    metadata = tmp_path / "theirs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    entry = "theirs = cli.test_cli_algorithms:WithoutClip"
    (metadata / "entry_points.txt").write_text(f"[rloop_lightning.algorithms]\n{entry}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(parse("--algo", "theirs").parts.algorithm).__name__ == "WithoutClip"


@pytest.fixture
def in_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The current folder holds the repository's links into the package, and modules are looked up there."""
    package = Path(rloop_lightning.__file__).parent
    for door in ("algorithms", "callbacks", "configs"):
        (tmp_path / door).symlink_to(package / door)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_class_path_through_a_link_into_the_package_is_refused_with_the_right_one(
    in_a_checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "--algo": "algorithms.dapo.DAPO",
        "--consolidate": "algorithms.rft.RFT",
        "--engine": "algorithms.dapo.DAPO",
        "--data": "algorithms.dapo.DAPO",
        "--reward": "callbacks.capture.RolloutCapture",
    }
    flags = [part for pair in given.items() for part in pair]
    assert main([*flags, "--trainer.callbacks+=callbacks.progress.PhaseProgress", "--out", "run"]) == 2
    said = capsys.readouterr().err.splitlines()
    for flag, path in given.items():
        line = f"{flag}: {path!r} goes through a link into the package; give rloop_lightning.{path}"
        assert f"rloop-fit: error: {line}" in said
    (callback,) = [line for line in said if "--trainer.callbacks" in line]
    assert "import rloop_lightning.callbacks" in callback
    assert not (in_a_checkout / "run").exists()


def test_a_settings_file_through_the_link_is_the_packages(in_a_checkout: Path) -> None:
    assert parse("--config", "configs/countdown.yaml").parts.loop == parse("--config", "countdown").parts.loop


def test_a_home_folder_in_out_is_expanded() -> None:
    assert parse("--out=~/runs/a").folder.out == Path.home() / "runs" / "a"
