"""`--help` says what the parser says: its options exist, with the same defaults and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest
from jsonargparse import ArgumentParser

from rloop_lightning.cli.declared import REQUIRED, declared_class
from rloop_lightning.cli.fit import FIXED, RLoopCLI
from rloop_lightning.cli.main import main
from rloop_lightning.cli.registry import names
from rloop_lightning.cli.short_help import FIXED_PATHS, SECTIONS, TRAINER, data_help, fit_help, summary_of
from rloop_lightning.cli.swappable import SWAPPABLE
from rloop_lightning.system.imports import import_object

PATHS = {
    **FIXED_PATHS,
    **{f"{group} {name}": path for group, part in SWAPPABLE.items() for name, path in names(part.registry).items()},
}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("part", PATHS)
def test_what_the_source_declares_is_what_the_parser_takes(part: str) -> None:
    declared = declared_class(PATHS[part])
    assert declared is not None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(import_object(PATHS[part]), "part")
    actions = {action.dest.removeprefix("part."): action for action in parser._actions if action.dest != "part"}
    actions = {name: action for name, action in actions.items() if name.rpartition(".")[2] not in ("help", "config")}
    groups = {name.partition(".")[0] for name in actions if "." in name}  # they have classes of their own
    actions = {name: action for name, action in actions.items() if name.partition(".")[0] not in groups}
    # A class may fix an argument of its base, which the parser then leaves out.
    assert actions.keys() <= declared.arguments.keys()
    for name, action in actions.items():
        argument = declared.arguments[name]
        assert " ".join((action.help or "").split()) == argument.help, name
        if argument.default is not REQUIRED:
            assert plain(action.default) == plain(argument.default), name


def test_every_listed_option_exists_and_has_a_text() -> None:
    known = {
        option for action in RLoopCLI(["--consolidate", "rft"]).parser._actions for option in action.option_strings
    }
    listed = [f"--{key}" for _, keys in SECTIONS for key in keys]
    assert set(listed) <= known
    assert len(listed) == len(set(listed)) <= 38
    shown = fit_help({}, width=200).splitlines()
    for flag in listed:
        (line,) = [line for line in shown if line.split()[:1] == [flag]]
        assert len(line.split()) > 2, flag


def test_the_classes_are_those_of_the_parser() -> None:
    classes = {group: import_object(path) for group, path in FIXED_PATHS.items()}
    inside = {group: cls for group, cls in classes.items() if "." in group}
    assert classes.items() - inside.items() <= FIXED.items()
    for group, cls in inside.items():
        outer, _, field = group.partition(".")
        assert get_type_hints(classes[outer])[field] is cls


def test_the_defaults_of_the_trainer_are_the_parsers() -> None:
    defaults = RLoopCLI(["--policy.model", "x"]).config.trainer
    assert {name: defaults[name] for name in TRAINER} == {name: field.default for name, field in TRAINER.items()}


def test_a_named_part_shows_its_own_options() -> None:
    assert "--algo.length_normalised" not in fit_help({})
    assert "--algo.length_normalised" in fit_help({"algo": "minirl"})
    assert "--data.answer_field" in fit_help({"data": "train.jsonl"})
    averaging = fit_help({"consolidate": "average"})
    assert "--consolidate.alpha" in averaging
    assert "--consolidate.epochs" not in averaging
    assert "--algo.scale" in fit_help({"algo": "cli.test_cli_algorithms.WithoutClip"})
    with pytest.raises(ValueError, match=r"--algo: unknown name 'dapoo'. Known are cispo, dapo, "):
        fit_help({"algo": "dapoo"})


def test_lines_fit_the_width() -> None:
    for text in (fit_help({"data": "files", "algo": "minirl"}, width=90), data_help(width=90)):
        options = text[text.index(":\n  --") :]
        assert [line for line in options.splitlines() if len(line) > 90 and line.startswith(" ")] == []


def test_the_summary_of_a_text_is_its_first_statement() -> None:
    assert summary_of("peak learning rate.") == "peak learning rate"
    assert summary_of("passes over it. Nothing more.") == "passes over it"
    assert summary_of("steps between two; 0 is off.") == "steps between two; 0 is off"
    long = (
        "a mapping, `{name: where}`, of whatever there is to be evaluated; it is read in its order (see the page), "
        "one by one."
    )
    assert summary_of(long) == "a mapping, `{name: where}`, of whatever there is to be evaluated"


def test_help_comes_first_whatever_else_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--loop.roundz", "3", "--help"]) == 0
    assert "usage: rloop-fit" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--algo", "minirl", "--help_all"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--algo.length_normalised {true,false}" in shown
    assert "--print_config[=FLAGS]" in shown
    assert "--trainer.max_steps" not in shown
    assert main(["--algo", "minrl", "--help_all"]) == 2
    assert "--algo: unknown name 'minrl'; did you mean minirl?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--trainer.callbacks.help=EarlyStopping"])
    assert "--trainer.callbacks.patience" in capsys.readouterr().out
    assert main(["--algo.help"]) == 2
    assert "--algo.help: no such option" in capsys.readouterr().err
