"""The settings of `rloop-eval`: its options, the parts that they describe, and their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.eval_arguments import SETS_CLASS, EvalArguments
from rloop_lightning.cli.parse_errors import Context, parse
from rloop_lightning.cli.parts import add_swappable, arguments_of, constructed
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.evaluation_sets import SelectedSets
from rloop_lightning.data.readable import readable
from rloop_lightning.evaluation.evaluator import EvaluationConfig
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.run.evaluated_policies import WhichPolicies
from rloop_lightning.run.offline_evaluation import EvaluationParts
from rloop_lightning.run.trainer import trainer_faults
from rloop_lightning.system.fields import Seed
from rloop_lightning.system.terminal import one_line

FIXED: Mapping[str, tuple[type, frozenset[str]]] = {
    "policy": (
        PolicyConfig,
        frozenset({"model", "max_tokens_per_micro_batch", "gradient_checkpointing", "routing_replay", "lora"}),
    ),
    "eval": (EvaluationConfig, frozenset({"every_n_steps", "sets_inside"})),
}
"""The groups with one class, and the fields that only matter to a training."""

_RESERVED = {"policy.model": "give the policy itself: rloop-eval POLICY --data SET"}
_RESERVED_WITH_SETS = {
    "data.eval": "give the sets to --data: rloop-eval POLICY --data SET ...",
    "data.path": "give the sets to --data: rloop-eval POLICY --data SET ...",
    "data.validation_size": "it splits a training set, and the sets of --data are evaluated as they are; leave it out",
}
_OF_THE_COMMAND = ("config", "out", "policies", "resume", "debug")


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of an evaluation that belong to no group.

    Args:
        policies: of a run, the policy that it handed over (`final`), or every policy that it saved (`all`).
        out: folder of the evaluation, absent or empty (default: evaluations/DATE-POLICY).
        resume: folder of the evaluation to continue; its settings are taken from there.
        seed_everything: seed of all randomness.
        debug: show the traceback of an error.
    """

    policies: WhichPolicies = "final"
    out: str | None = None
    resume: str | None = None
    seed_everything: Seed = 0
    debug: bool = False


@dataclass(frozen=True)
class DeviceOptions:
    """Where, and how, policies compute.

    Args:
        accelerator: cpu, gpu, or auto, which takes a GPU if there is one.
        precision: 32-true, or bf16-mixed to generate as a run with --trainer.precision bf16-mixed does.
    """

    accelerator: str = "auto"
    precision: Literal["32-true", "bf16-mixed"] | None = None


class EvalSettings:
    """The accepted settings of an evaluation.

    Args:
        arguments: the command line.
        located: resolves settings that are paths relative to the run that they come from.

    Attributes:
        options: the options that belong to no group.
        wrong: errors in the settings, one message each.
    """

    def __init__(self, arguments: EvalArguments, located: Any = lambda settings: settings) -> None:
        self._arguments = arguments
        self._parser = _parser(arguments)
        reserved = {**_RESERVED, **(_RESERVED_WITH_SETS if arguments.choices["data"].name == SETS_CLASS else {})}
        context = Context(
            arguments.file_of,
            reserved,
            arguments.undecided,
            full_help="rloop-eval --help",
            others_with=arguments.others_with,
        )
        flags = ["--debug=true" if flag == "--debug" else flag for flag in arguments.flags]
        config, wrong = parse(self._parser, located(self._configuration()), flags, context)
        self.wrong = [*arguments.wrong, *wrong]
        if config is None:
            raise UsageError("\n".join(self.wrong))
        self._config: Namespace = config
        self.options = EvaluationOptions(**{name: config[name] for name in EvaluationOptions.__dataclass_fields__})

    def _configuration(self) -> dict[str, Any]:
        """The configuration files without fields that only matter to a training."""
        given = dict(self._arguments.configuration)
        if isinstance(trainer := given.get("trainer"), dict):
            device = DeviceOptions.__dataclass_fields__
            given["trainer"] = {name: value for name, value in trainer.items() if name in device and value is not None}
        for group, (_, left_out) in FIXED.items():
            if isinstance(values := given.get(group), dict):
                given[group] = {name: value for name, value in values.items() if name not in left_out}
        return given

    def settings(self) -> dict[str, Any]:
        """All settings as groups, for config.yaml."""
        settings = yaml.safe_load(self._parser.dump(self._config, skip_unset=False))
        return {name: value for name, value in settings.items() if name not in _OF_THE_COMMAND}

    def parts(self, today: date) -> EvaluationParts:
        """The parts of the evaluation.

        Args:
            today: the date that chat templates see.

        Raises:
            UsageError: names all errors.
        """
        wrong = [*self.wrong, *trainer_faults(self._config.trainer)]
        made = {group: self._constructed(group, wrong) for group in (*self._arguments.choices, *FIXED)}
        if getattr(made["engine"], "max_rows", None) == "auto":
            wrong.append("--engine.max_rows auto: only rloop-fit has a memory plan; give a number")
        if wrong or None in made.values():
            raise UsageError("\n".join(dict.fromkeys(wrong)))
        config: EvaluationConfig = made["eval"]
        made["data"].today = today
        trainer = self._config.trainer
        on_gpu = trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and torch.cuda.is_available())
        return EvaluationParts(
            engine=made["engine"],
            make_engine=lambda: self._constructed("engine", []),
            data=_selected(made["data"], config, made["reward"]),
            reward=made["reward"],
            config=config,
            policy=made["policy"],
            seed=self.options.seed_everything,
            device=torch.device("cuda", 0) if on_gpu else torch.device("cpu"),
            mixed_precision=torch.bfloat16 if trainer.precision == "bf16-mixed" else None,
        )

    def _constructed(self, group: str, wrong: list[str]) -> Any:
        """The part of a group; None, with its errors in `wrong`, if it can't be made."""
        choice = self._arguments.choices.get(group)
        cls = FIXED[group][0] if choice is None else choice.cls
        if cls is None:  # its name is wrong
            return None
        return constructed(group, cls, arguments_of(self._parser, self._config, group), choice, wrong)


def _parser(arguments: EvalArguments) -> ArgumentParser:
    parser = ArgumentParser(prog="rloop-eval", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(EvaluationOptions)
    for group, choice in arguments.choices.items():
        add_swappable(parser, group, choice)
    for group, (cls, left_out) in FIXED.items():
        parser.add_class_arguments(cls, group, instantiate=False, skip=set(left_out))
    parser.add_class_arguments(DeviceOptions, "trainer", instantiate=False)
    return parser


def _selected(source: ProblemSource, config: EvaluationConfig, reward: Any) -> ProblemSource:
    """The sets to evaluate on, without problems that the reward can't read if the user wants that.

    Raises:
        UsageError: names all errors.
    """
    try:
        known = source.evaluation()
    except ValueError as error:
        raise UsageError(str(error)) from error
    names = list(known) if config.sets is None else config.sets
    has = ", ".join(map(one_line, known)) or "none"
    wrong = [
        f"--eval.sets: the data has no set {one_line(name)!r}, it has {has}" for name in names if name not in known
    ]
    if not names and known:
        wrong.append(f"--eval.sets: name a set, or leave it out for all; the data has {has}")
    elif not names:
        wrong.append("--data: it has no evaluation set; give files or data sets on the hub")
    if wrong:
        raise UsageError("\n".join(wrong))
    selected, unreadable = readable(SelectedSets(source, names), reward.unusable, f"--reward {type(reward).__name__}")
    if unreadable:
        raise UsageError("\n".join(unreadable))
    return selected
