"""The command line of `rloop-fit`: a LightningCLI with one group per part of a run.

    rloop-fit --algo dapo --consolidate rft
    rloop-fit --config countdown --algo.clip_eps_high 0.3 --trainer.accelerator gpu
    rloop-fit --resume runs/NAME

A swappable part takes a short name or a class path. Its fields are ordinary options, which are checked and shown in
`--help` (arguments.py). The command itself is in main.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning as L
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from rloop_lightning.algorithms.hyperparameters import CheckedHyperparameters
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.callbacks.capture import CaptureConfig
from rloop_lightning.callbacks.gradient_norm import GradientConfig
from rloop_lightning.cli.arguments import HELP_ALL, PRINT_CONFIG, Arguments, UsageError
from rloop_lightning.cli.instant import show
from rloop_lightning.cli.job import Job
from rloop_lightning.cli.options import RUN_OPTIONS
from rloop_lightning.cli.parse_errors import Context, parse
from rloop_lightning.cli.parts import add_swappable, arguments_of, constructed
from rloop_lightning.cli.prepare import faults_outside, prepare, upload_faults
from rloop_lightning.cli.printing import completion, config_text, full_help
from rloop_lightning.cli.refusal import refuse
from rloop_lightning.cli.stray_words import about
from rloop_lightning.cli.trainer_flags import (
    REFUSED,
    flags_without_defaults,
    trainer_from,
    without_defaults,
    without_enums,
)
from rloop_lightning.evaluation.evaluator import EvaluationConfig
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy
from rloop_lightning.rollouts.filter import FilterConfig
from rloop_lightning.run.claim import RunClaim
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.loop import LoopRunner
from rloop_lightning.run.offload import offload_faults
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.plan_config import PlanConfig
from rloop_lightning.run.state import LoopConfig
from rloop_lightning.run.trainer import does_shard, sharding_faults, trainer_faults
from rloop_lightning.system.hub import HubConfig
from rloop_lightning.system.ranks import ALONE
from rloop_lightning.system.store_urls import is_url, shown_url

FIXED = {
    "policy": PolicyConfig,
    "loop": LoopConfig,
    "filter": FilterConfig,
    "capture": CaptureConfig,
    "gradient": GradientConfig,
    "eval": EvaluationConfig,
    "hub": HubConfig,
    "plan": PlanConfig,
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
        claim: the run folder, if the caller has chosen it.

    Raises:
        UsageError: names all errors in the settings.
        SystemExit: 0, after `--help_all`, `--print_config` and `--print_shtab`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        objects: Mapping[str, Any] = MappingProxyType({}),
        claim: RunClaim | None = None,
    ) -> None:
        self.arguments = Arguments(argv, objects)
        self.objects = objects
        self._given_claim = claim
        self.ranks = ALONE
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
                "add_help": False,  # instant.py answers --help, before torch is imported
                "print_config": None,  # printing.py prints it, after all checks
                "exit_on_error": False,
                "allow_abbrev": False,
            },
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        given = self.arguments
        self._show_help(parser)
        reserved = {f"trainer.{name}": what for name, what in REFUSED.items()}
        reserved["hub.token"] = "run `hf auth login`, or set HF_TOKEN; no option takes a token"
        context = Context(given.file_of, reserved, given.undecided, about, HELP_ALL, given.others_with)
        if isinstance(trainer := given.configuration.get("trainer"), dict):
            given.configuration["trainer"] = without_defaults(trainer)
        given.flags = flags_without_defaults(given.flags)
        config, wrong = parse(parser, given.configuration, given.flags, context)
        self.wrong = [*given.wrong, *wrong]
        if config is None:
            raise UsageError("\n".join(self.wrong))
        self.config = without_enums(config)

    def _show_help(self, parser: LightningArgumentParser) -> None:
        """Show the help of `--help_all`, or of a class as in `--trainer.logger.help CSVLogger`, and end the program."""
        option, value = self.arguments.shows or ("", "")
        if option != HELP_ALL and not option.endswith(".help"):
            return
        refuse(self.arguments.wrong)
        if option == HELP_ALL:
            show(full_help(parser))
            raise SystemExit(0)
        _, wrong = parse(parser, {}, [f"{option}={value}" if value else option])
        raise UsageError("\n".join(wrong))

    def after_instantiate_classes(self) -> None:
        """Show what `--print_config` or `--print_shtab` asks for, and end the program."""
        if self.arguments.shows is None:
            return
        option, value = self.arguments.shows
        try:
            printed = option == PRINT_CONFIG
            text = config_text(self.parser, self.config, value) if printed else completion(self.parser, value)
        except ValueError as error:
            raise UsageError(str(error)) from error
        show(text.rstrip("\n"))
        raise SystemExit(0)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, option in RUN_OPTIONS.items():
            value = (
                {"action": "store_true"} if option.type is bool else {"type": option.type, "default": option.default}
            )
            parser.add_argument(f"--{name}", help=option.help, **value)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for group, choice in self.choices.items():
            add_swappable(parser, group, choice)
        for group, config in FIXED.items():
            parser.add_class_arguments(config, group, instantiate=False)
        parser.add_class_arguments(L.Trainer, "trainer", instantiate=False, fail_untyped=False, skip=set(REFUSED))
        parser.set_defaults({"trainer.devices": 1})

    def instantiate_classes(self) -> None:
        """Construct every part, and report all errors at once."""
        made: dict[str, Any] = {"consolidate": None, **self.objects}
        wrong = list(self.wrong)
        self.claim = self._given_claim or self._new_claim()
        chosen = {group: choice.cls for group, choice in self.choices.items() if choice.cls is not None}
        for group, cls in {**chosen, **FIXED}.items():
            settings = self.folder.located(arguments_of(self.parser, self.config, group))
            if (part := constructed(group, cls, settings, self.choices.get(group), wrong)) is not None:
                made[group] = part
        wrong += [
            message for part in made.values() if isinstance(part, CheckedHyperparameters) for message in part.invalid()
        ]
        wrong += trainer_faults(self.config.trainer, plans=self.config.plan.only)
        if "policy" in made:
            modules = [part for part in made.values() if isinstance(part, PolicyModule)]
            strategy, plans = self.config.trainer.strategy, self.config.plan.only
            wrong += sharding_faults(strategy, made["policy"], modules)
            wrong += offload_faults(self.config.trainer, modules, shards=does_shard(strategy), plans=plans)
        if wrong:
            if "hub" in made:
                wrong += upload_faults(self, made["hub"])
            refuse([*wrong, *faults_outside(self, made.get("policy"), made.get("data"))])
        self.policy_config: PolicyConfig = made["policy"]
        self.hub: HubConfig = made["hub"]
        self.plan: PlanConfig = made["plan"]
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

    def make_trainer(self, **kwargs: Any) -> L.Trainer:
        """A new Trainer with the user's flags. The user's callbacks come before those of the loop."""
        return trainer_from(self.parser, self.config.trainer, kwargs)

    def join(self, job: Job) -> None:
        """Come together with the other processes that the settings ask for.

        Raises:
            RunFault: they do not come.
            UsageError: the job has another number of them, or no Trainer can be made.
        """
        try:
            trainer = self.make_trainer(logger=False)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self.ranks = job.ranks(trainer.num_devices * trainer.num_nodes, trainer.num_nodes)

    def prepare(self) -> tuple[LoopRunner, Policy]:
        """Claim the run folder, run all checks, write the settings, and return the loop and the base policy.

        With --dry_run, only run the checks. Release `claim` at the end of the run.

        Raises:
            UsageError: names all errors.
            RunFolderError: the run folder can't be written.
        """
        return prepare(self)

    @property
    def folder(self) -> RunFolder:
        """The run folder; a new one has its final name once it is claimed."""
        return self.claim.folder

    def _new_claim(self) -> RunClaim:
        if named := self.config.resume or self.config.out:
            if is_url(named):
                raise UsageError(f"--out {shown_url(named)}: give a URL on the command line, not in a settings file")
            return RunClaim(RunFolder(Path(named).expanduser()))
        chosen = (self.choices[group].name.rpartition(".")[2].rstrip(">") for group in ("algo", "consolidate"))
        name = "-".join([time.strftime("%Y%m%d-%H%M%S"), *chosen])
        return RunClaim(RunFolder(Path("runs") / name), named=False)

    def settings(self) -> str:
        """All settings as YAML."""
        return self.parser.dump(self.config, skip_unset=False)

    def defaults(self) -> str:
        """The defaults of all settings as YAML."""
        defaults = self.parser.get_defaults(skip_validation=True)
        return self.parser.dump(defaults, skip_unset=False, skip_validation=True)
