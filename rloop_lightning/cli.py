"""`rloop-fit`: the command line, a LightningCLI whose groups are the parts of a run.

    rloop-fit --algo dapo --consolidate rft
    rloop-fit --config countdown --algo.clip_eps_high 0.3 --trainer.accelerator gpu
    rloop-fit --resume runs/NAME

A part that can be swapped (`--algo`, `--consolidate`, `--engine`, `--data`, `--reward`) takes a short name or a class
path. It is found before the parser is built, so that its own fields are ordinary options, checked and in `--help`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentParser, Namespace, get_loader
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from rloop_lightning.algorithms.base import Algorithm, Consolidation, PolicyModule
from rloop_lightning.atomic import write_text
from rloop_lightning.callbacks.capture import CaptureConfig
from rloop_lightning.callbacks.gradient_norm import GradientConfig
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.stream import NotEnoughGroupsError
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.evaluation import EvaluationConfig
from rloop_lightning.filter import FilterConfig
from rloop_lightning.loop import LoopRunner
from rloop_lightning.policy import Policy, PolicyConfig
from rloop_lightning.registry import NONE, find_class, names
from rloop_lightning.rewards.base import Reward
from rloop_lightning.state import LoopConfig

DEFAULT_PRESET = "countdown"

_USAGE = "rloop-fit [--config FILE_OR_PRESET] [--algo NAME] [--consolidate NAME] [--GROUP.FIELD VALUE ...] [--out RUN]"
_DESCRIPTION = """Trains a language model by reinforcement learning with verifiable rewards: rounds of exploration and
consolidation (RLoop, arXiv 2511.04285), or one algorithm alone with --consolidate none. Without --config and
--policy.model, the preset countdown trains the small policy that the package carries."""


@dataclass(frozen=True)
class Swappable:
    """A group of the command line whose class the user chooses."""

    registry: str
    base: type
    default: str
    what: str


SWAPPABLE = {
    "algo": Swappable("algorithms", Algorithm, "dapo", "the algorithm that explores"),
    "consolidate": Swappable("consolidations", Consolidation, "rft", "what is done with the expert set, or none"),
    "engine": Swappable("engines", RolloutEngine, "torch", "what generates rollouts"),
    "data": Swappable("data", ProblemSource, "countdown", "the problem sets"),
    "reward": Swappable("rewards", Reward, "countdown", "how completions are scored"),
}

FIXED = {
    "policy": PolicyConfig,
    "loop": LoopConfig,
    "filter": FilterConfig,
    "capture": CaptureConfig,
    "gradient": GradientConfig,
    "eval": EvaluationConfig,
}

# The loop sets these itself: a phase is one pass over its stream, logged and checkpointed in the run folder.
_TRAINER_FLAGS_OF_THE_LOOP = {
    "max_epochs",
    "min_epochs",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "use_distributed_sampler",
    "enable_checkpointing",
    "enable_model_summary",
    "default_root_dir",
    "reload_dataloaders_every_n_epochs",
}


class UsageError(Exception):
    """Something is wrong with what the user gave; the message says what and what to do. Exit code 2."""


class RLoopCLI(LightningCLI):
    """Parses the command line and the configuration files into the parts of a run.

    Args:
        argv: command line arguments, without the program's name.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        arguments = _Arguments(argv)
        self.choices = arguments.choices
        super().__init__(
            args=arguments.for_parser(),
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "rloop-fit", "description": _DESCRIPTION, "usage": _USAGE},
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # Without Lightning's warning that sys.argv is not what is parsed, which is meant here.
        assert isinstance(args, list)
        self.config = parser.parse_args(args)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="seed that everything random derives from")
        parser.add_argument("--out", type=str, default=None, help="run folder (default: runs/DATE-ALGO-CONSOLIDATE)")
        parser.add_argument("--resume", type=str, default=None, help="run folder to go on with, where it was left")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for group, choice in self.choices.items():
            _add_swappable(parser, group, choice)
        for group, config in FIXED.items():
            parser.add_class_arguments(config, group)
        parser.add_class_arguments(
            L.Trainer, "trainer", instantiate=False, fail_untyped=False, skip=_TRAINER_FLAGS_OF_THE_LOOP
        )
        parser.set_defaults({"trainer.devices": 1})

    def instantiate_classes(self) -> None:
        """Make every part, and say all that is wrong with them at once."""
        self.parts: dict[str, Any] = {}
        problems: list[str] = []
        chosen = [group for group, choice in self.choices.items() if choice.cls is not None]
        for group in [*chosen, *FIXED]:
            settings = self.config[group].clone()
            settings.pop("name", None)
            try:
                self.parts[group] = self.parser.instantiate(Namespace({group: settings}))[group]
            except ValueError as error:
                problems.append(str(error))
        for part in self.parts.values():
            problems += part.invalid() if isinstance(part, PolicyModule) else []
        if problems:
            raise UsageError("\n".join(problems))

    def make_trainer(self, **kwargs: Any) -> L.Trainer:
        """A fresh Trainer with the user's flags; its callbacks and loggers come on top of the user's."""
        given = dict(self.parser.instantiate(Namespace(trainer=self.config.trainer.clone())).trainer)
        for several in ("callbacks", "logger"):
            users = given.pop(several, None)
            users = users if isinstance(users, list) else [users] if users else []
            kwargs[several] = [*users, *kwargs.get(several, [])]
        if given.get("enable_progress_bar") is False:
            kwargs["callbacks"] = [c for c in kwargs["callbacks"] if not isinstance(c, ProgressBar)]
        return L.Trainer(**{**given, **kwargs})

    def make_runner(self, out: Path) -> LoopRunner:
        """The loop over this run's parts.

        Raises:
            UsageError: the parts don't fit together; names all that is wrong.
        """
        parts = self.parts
        runner = LoopRunner(
            out=out,
            load_policy=lambda: Policy.load(parts["policy"]),
            engine=parts["engine"],
            data=parts["data"],
            reward=parts["reward"],
            algorithm=parts["algo"],
            consolidation=parts.get("consolidate"),
            config=parts["loop"],
            filter=parts["filter"],
            capture=parts["capture"],
            gradient=parts["gradient"],
            evaluation=parts["eval"],
            seed=self.config.seed_everything,
            make_trainer=self.make_trainer,
        )
        if problems := runner.invalid():
            raise UsageError("\n".join(problems))
        return runner


@dataclass(frozen=True)
class Choice:
    """What the user chose for a swappable group; `cls` is None for `none`."""

    name: str
    cls: type | None


class _Arguments:
    """The command line, taken apart before there is a parser: configuration files and the names of swappable parts."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.rest: list[str] = []
        config_names: list[str] = []
        named: dict[str, str] = {}
        for flag, value in _pairs(argv):
            group = flag.removeprefix("--").removesuffix(".name")
            if flag in ("--config", "-c"):
                config_names.append(_needed(flag, value))
            elif flag == "--resume":
                config_names.append(str(Path(_needed(flag, value)) / "config.yaml"))
                self.rest += [flag, _needed(flag, value)]
            elif flag.startswith("--") and group in SWAPPABLE:
                named[group] = _needed(flag, value)
            else:
                self.rest += [flag] if value is None else [f"{flag}={value}"]
        if not config_names and not any(flag.startswith("--policy.model") for flag in self.rest):
            config_names.append(DEFAULT_PRESET)
        configs = [_read_config(name) for name in config_names]
        self.choices = {group: _choose(group, named.get(group), configs) for group in SWAPPABLE}
        self.settings = _merge(configs, self.choices)

    def for_parser(self) -> list[str]:
        """What the parser is to parse."""
        names = [f"--{group}.name={choice.name}" for group, choice in self.choices.items()]
        return ["--config", json.dumps(self.settings), *names, *self.rest]


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Flags with their values; `--flag value` and `--flag=value` are the same."""
    arguments = list(argv)
    while arguments:
        flag = arguments.pop(0)
        if "=" in flag:
            flag, _, value = flag.partition("=")
            yield flag, value
        elif arguments and (not arguments[0].startswith("-") or _is_number(arguments[0])):
            yield flag, arguments.pop(0)
        else:
            yield flag, None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _needed(flag: str, value: str | None) -> str:
    if value is None:
        raise UsageError(f"{flag} needs a value")
    return value


def _read_config(name: str) -> dict[str, Any]:
    """A configuration file, or a preset of the package by its name."""
    preset = preset_folder() / f"{name}.yaml"
    path = Path(name) if Path(name).is_file() else preset
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in preset_folder().glob("*.yaml")))
        raise UsageError(f"--config: no file {name!r}, and no preset of that name; presets are {known}")
    try:
        settings = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except Exception as error:  # whatever the YAML parser raises
        raise UsageError(f"--config {name}: not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"--config {name}: expected groups of settings such as `loop:`, got {type(settings).__name__}")
    for group in SWAPPABLE:
        if isinstance(settings.get(group), str):
            settings[group] = {"name": settings[group]}
    return settings


def _choose(group: str, named: str | None, configs: Sequence[Mapping[str, Any]]) -> Choice:
    """The command line's name for a part, else the last configuration file's, else the default."""
    swappable = SWAPPABLE[group]
    in_configs = [config[group]["name"] for config in configs if "name" in config.get(group, {})]
    name = named or (in_configs[-1] if in_configs else swappable.default)
    if name == NONE and group == "consolidate":
        return Choice(name, None)
    try:
        return Choice(name, find_class(swappable.registry, name, swappable.base))
    except ValueError as error:
        raise UsageError(f"--{group}: {error}") from error


def _merge(configs: Sequence[Mapping[str, Any]], choices: Mapping[str, Choice]) -> dict[str, Any]:
    """The configuration files as one, the later ones winning key by key.

    A file's fields for a part count only while it is the part that the file means, or one that takes the same field:
    `--config countdown --algo grpo` keeps the preset's learning rate and forgets DAPO's own fields.
    """
    merged: dict[str, Any] = {}
    for config in configs:
        for group, values in config.items():
            if not isinstance(values, dict):
                merged[group] = values
                continue
            choice = choices.get(group)
            if choice is not None and values.get("name", choice.name) != choice.name:
                accepted = _fields(choice.cls)
                values = {key: value for key, value in values.items() if key in accepted}
            merged.setdefault(group, {}).update({key: value for key, value in values.items() if key != "name"})
    return merged


def _fields(cls: type | None) -> set[str]:
    """The names of a class's arguments, inherited ones included."""
    if cls is None:
        return set()
    return {name.partition(".")[2] for name in ArgumentParser(exit_on_error=False).add_class_arguments(cls, "part")}


def _add_swappable(parser: LightningArgumentParser, group: str, choice: Choice) -> None:
    """`--GROUP NAME`, and the fields of the class that was chosen."""
    swappable = SWAPPABLE[group]
    known = ", ".join([*sorted(names(swappable.registry)), *([NONE] if group == "consolidate" else [])])
    what = f"{swappable.what}: {known}, or a class path (default: {swappable.default})"
    if choice.cls is not None:
        parser.add_class_arguments(choice.cls, group)
        action = next(action for action in parser._actions if f"--{group}" in action.option_strings)
        action.metavar, action.help = "NAME", what
    parser.add_argument(f"--{group}.name", type=str, default=choice.name, help=what, metavar="NAME")


def preset_folder() -> Path:
    """Where the packaged presets are."""
    return Path(__file__).parent / "configs"


def main(argv: Sequence[str] | None = None) -> int:
    """The `rloop-fit` command. Exit codes: 0 done, 1 a fault during the run, 2 wrong input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _quieten()
    try:
        cli = RLoopCLI(arguments)
        out = _run_folder(cli)
        runner = cli.make_runner(out)
        if not (out / "config.yaml").exists():
            write_text(out / "config.yaml", cli.parser.dump(cli.config, skip_unset=False))
        state = runner.run()
    except (UsageError, NotEnoughGroupsError) as error:
        if "--debug" in arguments:
            raise
        for line in str(error).splitlines():
            print(f"rloop-fit: error: {line}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print(f"\n{(out / 'results.md').read_text(encoding='utf-8')}")
    print(f"{state.selected} is in {out / 'final'}; table, plots, metrics.csv and TensorBoard logs are in {out}")
    return 0


def _quieten() -> None:
    """Our messages, without what libraries say at every phase; their warnings stay."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("rloop_lightning").setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _run_folder(cli: RLoopCLI) -> Path:
    if cli.config.resume:
        out = Path(cli.config.resume)
        if not (out / "state.json").is_file():
            raise UsageError(f"--resume {out}: there is no state.json; give the folder of a run that was begun")
        return out
    names = (cli.choices[group].name.rpartition(".")[2] for group in ("algo", "consolidate"))
    out = Path(cli.config.out or "runs/" + "-".join([time.strftime("%Y%m%d-%H%M%S"), *names]))
    if (out / "state.json").exists():
        raise UsageError(f"--out {out} holds a run already; go on with it by --resume {out}, or name another folder")
    return out
