"""The command line of `rloop-fit`: a LightningCLI with one group per part of a run.

    rloop-fit --algo dapo --consolidate rft
    rloop-fit --config countdown --algo.clip_eps_high 0.3 --trainer.accelerator gpu
    rloop-fit --resume runs/NAME

A swappable part takes a short name or a class path. Its fields are ordinary options, which are checked and shown in
`--help` (arguments.py). The command itself is in main.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.callbacks.capture import CaptureConfig
from rloop_lightning.callbacks.gradient_norm import GradientConfig
from rloop_lightning.cli.arguments import SWAPPABLE, Arguments, Choice, UsageError
from rloop_lightning.cli.parse_errors import Context, parse
from rloop_lightning.cli.registry import NONE, names
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.evaluation.evaluator import EvaluationConfig
from rloop_lightning.model.config import PolicyConfig, policy_faults
from rloop_lightning.model.policy import Policy
from rloop_lightning.rollouts.filter import FilterConfig
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.loop import LoopRunner
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.precision import slow_bfloat16
from rloop_lightning.run.start import begin, changed_settings, new_run_faults
from rloop_lightning.run.state import LoopConfig
from rloop_lightning.system.fields import plain

FIXED = {
    "policy": PolicyConfig,
    "loop": LoopConfig,
    "filter": FilterConfig,
    "capture": CaptureConfig,
    "gradient": GradientConfig,
    "eval": EvaluationConfig,
}

_log = logging.getLogger(__name__)

# The loop sets these: a phase is one pass over its stream with manual optimization, recorded in the run folder.
_TRAINER_FLAGS_OF_THE_LOOP = {
    "max_epochs",
    "min_epochs",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "use_distributed_sampler",
    "enable_checkpointing",
    "enable_model_summary",
    "default_root_dir",
    "reload_dataloaders_every_n_epochs",
}

_USAGE = "rloop-fit [--config FILE_OR_PRESET] [--algo NAME] [--consolidate NAME] [--GROUP.FIELD VALUE ...] [--out RUN]"

_DESCRIPTION = """Trains a language model by reinforcement learning with verifiable rewards, in rounds of exploration
and consolidation (RLoop, arXiv 2511.04285), or with one algorithm alone (--consolidate none). Without --config and
--policy.model, the preset countdown trains the small policy that ships with the package."""


class RLoopCLI(LightningCLI):
    """Parses the command line and the configuration files into the parts of a run.

    Args:
        argv: command line arguments, without the program name.
        objects: by group, parts given as Python objects without an import path.

    Raises:
        UsageError: names all errors in the settings.
        SystemExit: 0, after `--help` and `--print_config`.
    """

    def __init__(self, argv: Sequence[str], objects: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.arguments = Arguments(argv, objects)
        self.objects = objects
        self.choices = self.arguments.choices
        super().__init__(
            args=self.arguments.flags,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={
                "prog": "rloop-fit",
                "description": _DESCRIPTION,
                "usage": _USAGE,
                "exit_on_error": False,
                "allow_abbrev": False,
            },
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        given = self.arguments
        reserved = {f"trainer.{name}": "the loop sets this itself; leave it out" for name in _TRAINER_FLAGS_OF_THE_LOOP}
        context = Context(given.file_of, reserved, given.undecided)
        config, wrong = parse(parser, given.configuration, given.flags, context)
        self.wrong = [*given.wrong, *wrong]
        if config is None:
            raise UsageError("\n".join(self.wrong))
        self.config = config

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="seed of all randomness")
        parser.add_argument("--out", type=str, default=None, help="run folder (default: runs/DATE-ALGO-CONSOLIDATE)")
        parser.add_argument("--resume", type=str, default=None, help="folder of the run to resume")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for group, choice in self.choices.items():
            _add_swappable(parser, group, choice)
        for group, config in FIXED.items():
            parser.add_class_arguments(config, group, instantiate=False)
        parser.add_class_arguments(
            L.Trainer, "trainer", instantiate=False, fail_untyped=False, skip=_TRAINER_FLAGS_OF_THE_LOOP
        )
        parser.set_defaults({"trainer.devices": 1})

    def instantiate_classes(self) -> None:
        """Construct every part, and report all errors at once."""
        made: dict[str, Any] = {"consolidate": None, **self.objects}
        wrong = list(self.wrong)
        chosen = {group: choice.cls for group, choice in self.choices.items() if choice.cls is not None}
        for group, cls in {**chosen, **FIXED}.items():
            settings = RunFolder(self._run_folder()).located(self._arguments_of(group))
            settings.pop("name", None)
            try:
                made[group] = cls(**settings)
            except ValueError as error:
                wrong += str(error).splitlines()
        wrong += [message for part in made.values() if isinstance(part, PolicyModule) for message in part.invalid()]
        if wrong:
            _refuse(
                [*wrong, *self._faults_outside(RunFolder(self._run_folder()), made.get("policy"), made.get("data"))]
            )
        self.policy_config: PolicyConfig = made["policy"]
        self.parts = Parts(
            engine=made["engine"],
            data=made["data"],
            reward=made["reward"],
            algorithm=made["algo"],
            consolidation=made["consolidate"],
            loop=made["loop"],
            filter=made["filter"],
            capture=made["capture"],
            gradient=made["gradient"],
            evaluation=made["eval"],
            seed=self.config.seed_everything,
        )

    def _arguments_of(self, group: str) -> dict[str, Any]:
        """The arguments of a group's class, with new instances of arguments that are objects themselves."""
        # With groups, the parser would instantiate the classes of all other groups as well, without arguments.
        settings = Namespace({group: self.config[group].clone()})
        return plain(dict(self.parser.instantiate(settings, instantiate_groups=False)[group]))

    def make_trainer(self, **kwargs: Any) -> L.Trainer:
        """A new Trainer with the user's flags. The user's callbacks and loggers come before those of the loop."""
        given = self._arguments_of("trainer")
        for several in ("callbacks", "logger"):
            users = given.pop(several, None)
            users = users if isinstance(users, list) else [users]
            kwargs[several] = [*(one for one in users if one and one is not True), *kwargs.get(several, [])]
        bars = [callback for callback in kwargs["callbacks"] if isinstance(callback, ProgressBar)]
        shown = [] if given.get("enable_progress_bar") is False else bars[:1]  # the user's own, if there is one
        kwargs["callbacks"] = [
            callback for callback in kwargs["callbacks"] if callback not in bars or callback in shown
        ]
        return L.Trainer(**{**given, **kwargs})

    def prepare(self) -> tuple[LoopRunner, Policy]:
        """Run all checks, start the run folder, and return the loop and the base policy.

        Raises:
            UsageError: names all errors.
            RunFolderError: the run folder can't be written.
        """
        out = self._run_folder()
        wrong = self._faults_outside(RunFolder(out), self.policy_config, None)
        try:
            parts, unreadable = self.parts.readable()
            wrong += [*parts.validate(), *unreadable]
        except ValueError as error:
            wrong += str(error).splitlines()
        try:
            runner = LoopRunner(out, self.parts, self.make_trainer)
        except (ValueError, MisconfigurationException) as error:
            wrong += str(error).splitlines()
        _refuse(wrong)
        try:
            policy = Policy.load(self.policy_config)
        except (ValueError, OSError) as error:
            _refuse([f"--policy.model {self.policy_config.model}: {line}" for line in str(error).splitlines()])
        try:
            runner.parts = parts.rendered(policy)
        except ValueError as error:
            raise UsageError(str(error)) from error
        _refuse(runner.parts.validate_with(policy))
        if not self.config.resume:
            begin(runner.folder, self._settings())
        if warning := slow_bfloat16(self._dtypes(runner), runner.device.type):
            _log.warning(warning)
        return runner, policy

    def _dtypes(self, runner: LoopRunner) -> dict[str, str | None]:
        """The options that choose a dtype, with their values."""
        return {
            "--trainer.precision": None if runner.mixed_precision is None else "bf16-mixed",
            "--policy.dtype": self.policy_config.dtype,
            "--policy.head_dtype": self.policy_config.head_dtype,
            "--engine.dtype": getattr(self.parts.engine, "dtype", None),
        }

    def _run_folder(self) -> Path:
        if self.config.resume:
            return Path(self.config.resume)
        chosen = (self.choices[group].name.rpartition(".")[2].rstrip(">") for group in ("algo", "consolidate"))
        return Path(self.config.out or "runs/" + "-".join([time.strftime("%Y%m%d-%H%M%S"), *chosen]))

    def _settings(self) -> str:
        """All settings as YAML."""
        return self.parser.dump(self.config, skip_unset=False)

    def _faults_outside(self, folder: RunFolder, policy: PolicyConfig | None, data: ProblemSource | None) -> list[str]:
        """Errors in the run folder, the model's folder and the problem sets."""
        if not self.config.resume:
            wrong = new_run_faults(folder)
        elif self.arguments.resumable:
            wrong = changed_settings(folder, self._settings())
        else:  # `self.wrong` has the error already
            wrong = []
        if policy is not None:
            wrong += [f"--policy.model {policy.model}: {fault}" for fault in policy_faults(policy)]
        if data is not None:
            try:
                data.train(), data.evaluation()
            except ValueError as error:
                wrong += str(error).splitlines()
        return wrong


def _refuse(wrong: Sequence[str]) -> None:
    """Raise UsageError if there are errors."""
    if wrong:
        raise UsageError("\n".join(dict.fromkeys(wrong)))


def _add_swappable(parser: LightningArgumentParser, group: str, choice: Choice) -> None:
    """Add `--GROUP NAME` and the fields of the chosen class."""
    swappable = SWAPPABLE[group]
    known = ", ".join([*sorted(names(swappable.registry)), *([NONE] if group == "consolidate" else [])])
    what = f"{swappable.what}: {known}, or a class path (default: {swappable.default})"
    if choice.cls is not None:
        parser.add_class_arguments(choice.cls, group, instantiate=False)
        action = next(action for action in parser._actions if f"--{group}" in action.option_strings)
        action.metavar, action.help = "NAME", what
    parser.add_argument(f"--{group}.name", type=str, default=choice.name, help=what, metavar="NAME")
