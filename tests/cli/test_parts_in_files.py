"""Parts in the LightningCLI's own form, `class_path` and `init_args`, and what else a settings file may get wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from problem_files import write_rows

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.fit import RLoopCLI

GRPO = "rloop_lightning.algorithms.grpo.GRPO"

FORMS = {
    "algo": ("grpo", GRPO, "{lr: 1e-5, passes: 2}"),
    "consolidate": ("rft", "rloop_lightning.algorithms.rft.RFT", "{epochs: 3}"),
    "engine": ("torch", "rloop_lightning.engines.torch_engine.TorchEngine", "{temperature: 0.7}"),
    "data": ("countdown", "rloop_lightning.data.countdown.Countdown", "{train_size: 50}"),
    "reward": ("math", "rloop_lightning.rewards.math.MathReward", "{}"),
}


def group_of(group: str, *arguments: str) -> dict[str, object]:
    settings = RLoopCLI(["--policy.model", "x", *arguments]).config[group].as_dict()
    return {name: value for name, value in settings.items() if name != "name"}


@pytest.mark.parametrize("group", FORMS)
def test_class_path_and_init_args_are_name_and_fields(group: str, tmp_path: Path) -> None:
    short, path, fields = FORMS[group]
    file = tmp_path / "a.yaml"
    inside = fields.strip("{}")
    file.write_text(f"{group}: {{name: {short}{', ' if inside else ''}{inside}}}\n")
    expected = group_of(group, "--config", str(file))
    for name in (short, path):
        file.write_text(f"{group}:\n  class_path: {name}\n  init_args: {fields}\n")
        assert group_of(group, "--config", str(file)) == expected
        flags = [f"--{group}.class_path", name, f"--{group}.init_args", fields]
        assert group_of(group, *flags) == expected
        assert group_of(group, f"--{group}", f"{{class_path: {name}, init_args: {fields}}}") == expected
    each = [f"--{group}.init_args.{field.replace(': ', '=')}" for field in inside.split(", ") if field]
    assert group_of(group, f"--{group}.class_path={path}", *each) == expected


def test_class_path_may_be_what_a_name_may_be(tmp_path: Path) -> None:
    problems, file = tmp_path / "train.jsonl", tmp_path / "a.yaml"
    write_rows(problems)
    file.write_text(
        f"data: {{class_path: {problems}, init_args: {{preset: gsm8k}}}}\nconsolidate: {{class_path: none}}\n"
    )
    cli = RLoopCLI(["--policy.model", "x", "--config", str(file), "--loop.problems_per_step", "1"])
    assert cli.config.data.path == str(problems)
    assert cli.config.data.preset == "gsm8k"
    assert cli.parts.consolidation is None


def test_a_file_may_hold_the_fields_of_other_classes(tmp_path: Path) -> None:
    file, later = tmp_path / "a.yaml", tmp_path / "b.yaml"
    file.write_text(
        "consolidate: {name: average, alpha: 0.7, instead: {rft: {lr: 3e-4, epochs: 5}, distil: {class: 1}}}\n"
        "algo: {name: dapo, lr: 1e-5, instead: {grpo: {lr: 2e-5}}}\n"
    )
    given = ["--policy.model", "x", "--config", str(file)]
    assert RLoopCLI(given).config.consolidate.as_dict() == {"name": "average", "alpha": 0.7, "start": "initial"}
    cli = RLoopCLI([*given, "--consolidate", "rft", "--consolidate.epochs", "6", "--algo", "grpo"])
    assert (cli.config.consolidate.lr, cli.config.consolidate.epochs, cli.config.algo.lr) == (3e-4, 6, 2e-5)
    assert RLoopCLI([*given, "--algo", "maxrl"]).config.algo.lr == 1e-5
    assert RLoopCLI([*given, "--consolidate", "none"]).parts.consolidation is None
    later.write_text("consolidate: rft\n")
    assert RLoopCLI([*given, "--config", str(later)]).config.consolidate.lr == 3e-4


def test_a_later_file_may_set_fields_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("algo: {class_path: grpo, init_args: {lr: 1e-5, passes: 2}}\n")
    second.write_text("algo: {init_args: {lr: 2e-5}}\n")
    algo = RLoopCLI(["--config", str(first), "--config", str(second)]).config.algo
    assert (algo.name, algo.lr, algo.passes) == ("grpo", 2e-5, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("algo: {class_path: grpo, name: dapo}", "algo.class_path: algo.name is there too; leave one of them out"),
        (
            "algo: {name: dapo, instead: {grpo: 3}}",
            "algo.instead: expected fields by name, such as {NAME:",
        ),
        (
            "consolidate: {name: rft, instead: {averag: {}}}",
            "consolidate.instead: unknown 'averag'; take class",
        ),
        ("algo: {name: dapo, instead: grpo}", "algo.instead: expected fields by name, such as {NAME:"),
        ("algo: {class_path: 3}", "algo.name: expected a class path or a short name, got 3"),
        ("algo: {class_path: }", "algo.name: expected a class path or a short name, got None"),
        ("algo: {class_path: grpo, lr: 1e-5}", "algo.lr: write it into algo.init_args"),
        ("algo: {class_path: grpo, init_args: [lr]}", "algo.init_args: expected a mapping of fields, got ['lr']"),
        ("algo: {class_path: grpo, init_args: {lrr: 1}}", "algo.lrr: no such option; did you mean --algo.lr?"),
        ("algo: {class_path: grpo, init_args: {lr: high}}", "algo.lr: expected a number > 0, got 'high'"),
        ("algo: {name: [dapo]}", "algo.name: expected a class path or a short name, got ['dapo']"),
        ("loop: {class_path: grpo}", "loop.class_path: no such option"),
        ("loop: {rounds: 2}\neval: {samples: 32}\nloop: {select: last}", "loop: it is there twice, the second time in"),
        ("loop:\n  rounds: 2\n  rounds: 3", "loop.rounds: it is there twice, the second time in line 3; keep one"),
        ("resume: runs/a", "resume: give --resume on the command line, not in a file"),
        ("consolidate:\nloop: {rounds: 2}", "consolidate: there is nothing in it; write `consolidate: none`"),
        ("loop: {rounds: '3x'}", "loop.rounds: expected an integer > 0, got '3x'"),
        ("1: 2", "1: no such option"),
        ("seed_everything: -1", "seed_everything: expected an integer >= 0 and < 4294967296, got -1"),
    ],
)
def test_a_wrong_file_is_told_with_file_and_key(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text + "\n")
    with pytest.raises(UsageError) as caught:
        RLoopCLI(["--config", str(file)])
    assert f"--config {file}: {said}" in str(caught.value)


def test_every_unreadable_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("loop: {\n")
    (tmp_path / "b.yaml").write_text("- loop\n")
    with pytest.raises(UsageError) as caught:
        RLoopCLI(["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--config", "none"])
    (first, second, third) = str(caught.value).splitlines()
    assert first.startswith(f"--config {tmp_path / 'a.yaml'}: not valid YAML")
    assert second.startswith(f"--config {tmp_path / 'b.yaml'}: expected groups of settings")
    assert third.startswith("--config: no file 'none'")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("fit", "rloop-fit takes no subcommand; leave 'fit' out and give options alone (rloop-fit --help)"),
        ("train --loop.rounds 2", "rloop-fit takes no subcommand; leave 'train' out"),
        ("help", "'help' is no subcommand; run rloop-fit --help"),
        ("countdown", "settings are given as --config countdown"),
        ("mine.yaml", "settings are given as --config mine.yaml"),
        ("minirl", "to choose it, give --algo minirl"),
        ("train.jsonl", "problems are given as --data train.jsonl, settings as --config train.jsonl"),
        ("-config mine.yaml", "'-config=mine.yaml' is not an option; options begin with --"),
        ("--algo=", "--algo needs a value"),
        ("--out=", "--out needs a value"),
        ("--config", "--config needs a value"),
        ("--algo.init_args nothing", "--algo.init_args: expected a mapping of fields, got 'nothing'"),
        ("--algo {[}", "--algo: expected a mapping of fields, got '{[}'"),
        ("--seed_everything -1", "--seed_everything: expected an integer >= 0 and < 4294967296, got -1"),
        ("--print_completion bash", "--print_completion: no such option; did you mean --loop.show_completions?"),
    ],
)
def test_a_stray_word_is_told_where_it_belongs(arguments: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        RLoopCLI(arguments.split())
    (line,) = str(caught.value).splitlines()
    assert line.startswith(said)


def test_a_run_folder_by_itself_is_to_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UsageError, match=f"^to resume a run, give --resume {tmp_path}$"):
        RLoopCLI([str(tmp_path)])


def test_a_value_may_begin_with_a_dash(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl")
    cli = RLoopCLI(["--data", str(tmp_path / "train.jsonl"), "--data.instruction", "- think"])
    assert cli.config.data.instruction == "- think"


@pytest.mark.parametrize("source", ["def broken(:\n", "1 / 0\n", "import nonesuch_package\n"])
def test_a_module_that_can_not_be_imported_is_told(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"mine_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=f"--algo: can't import '{name}.Algo': "):
        RLoopCLI(["--algo", f"{name}.Algo"])
