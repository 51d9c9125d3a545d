"""`rloop-fit`: the command line, a LightningCLI whose groups are the parts of a run.

    rloop-fit --algo dapo --consolidate rft
    rloop-fit --config countdown --algo.clip_eps_high 0.3 --trainer.accelerator gpu
    rloop-fit --resume runs/NAME

A part that can be swapped takes a short name or a class path, and its own fields are ordinary options, checked and in
`--help` (arguments.py).
"""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rloop_lightning.algorithms.base import PolicyModule
from rloop_lightning.arguments import SWAPPABLE, Arguments, Choice, UsageError
from rloop_lightning.atomic import write_text
from rloop_lightning.callbacks.capture import CaptureConfig
from rloop_lightning.callbacks.gradient_norm import GradientConfig
from rloop_lightning.data.stream import NotEnoughGroupsError
from rloop_lightning.evaluation import EvaluationConfig
from rloop_lightning.faults import RunFault, StateError, Stopped
from rloop_lightning.filter import FilterConfig
from rloop_lightning.loop import LoopRunner
from rloop_lightning.parts import Parts
from rloop_lightning.policy import Policy, PolicyConfig
from rloop_lightning.registry import NONE, names
from rloop_lightning.rewards.workers import WorkerStartError
from rloop_lightning.signals import StopSignals
from rloop_lightning.state import LoopConfig

FIXED = {
    "policy": PolicyConfig,
    "loop": LoopConfig,
    "filter": FilterConfig,
    "capture": CaptureConfig,
    "gradient": GradientConfig,
    "eval": EvaluationConfig,
}

# The loop sets these itself: a phase is one pass over its stream, by manual optimization, recorded in the run folder.
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

# What may differ when a run is resumed, as it has no part in what the run computes.
_FREE_ON_RESUME = ("resume", "out", "debug", "loop.select", "loop.checkpoint_every_n_steps", "gradient.", "trainer.")

_USAGE = "rloop-fit [--config FILE_OR_PRESET] [--algo NAME] [--consolidate NAME] [--GROUP.FIELD VALUE ...] [--out RUN]"

_DESCRIPTION = """Trains a language model by reinforcement learning with verifiable rewards: rounds of exploration and
consolidation (RLoop, arXiv 2511.04285), or one algorithm alone with --consolidate none. Without --config and
--policy.model, the preset countdown trains the small policy that the package carries."""


class RLoopCLI(LightningCLI):
    """Parses the command line and the configuration files into the parts of a run.

    Args:
        argv: command line arguments, without the program's name.

    Raises:
        UsageError: names all that is wrong with the settings.
        SystemExit: the parser's own, with a message: 2 for an option that it does not know, 0 after `--help`.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        arguments = Arguments(argv)
        self.choices = arguments.choices
        super().__init__(
            args=arguments.for_parser,
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
            parser.add_class_arguments(config, group, instantiate=False)
        parser.add_class_arguments(
            L.Trainer, "trainer", instantiate=False, fail_untyped=False, skip=_TRAINER_FLAGS_OF_THE_LOOP
        )
        parser.set_defaults({"trainer.devices": 1})

    def instantiate_classes(self) -> None:
        """Make every part, and say all that is wrong with them at once."""
        made: dict[str, Any] = {"consolidate": None}
        wrong: list[str] = []
        chosen = {group: choice.cls for group, choice in self.choices.items() if choice.cls is not None}
        for group, cls in {**chosen, **FIXED}.items():
            settings = self._arguments_of(group)
            settings.pop("name", None)
            try:
                made[group] = cls(**settings)
            except ValueError as error:
                wrong.append(str(error))
        wrong += [message for part in made.values() if isinstance(part, PolicyModule) for message in part.invalid()]
        if wrong:
            raise UsageError("\n".join(wrong))
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
        """The arguments of a group's class; those that are objects themselves are made anew."""
        # With its groups, the parser would make every class in it, those of all other groups without arguments.
        settings = Namespace({group: self.config[group].clone()})
        return dict(self.parser.instantiate(settings, instantiate_groups=False)[group])

    def make_trainer(self, **kwargs: Any) -> L.Trainer:
        """A fresh Trainer with the user's flags; the user's callbacks and loggers come before those of the loop."""
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
        """The loop and the base policy, with everything checked that can be, and the run folder begun.

        Raises:
            UsageError: names all that is wrong.
        """
        out = self._run_folder()
        try:
            wrong = self.parts.misfits()
            runner = LoopRunner(out, self.parts, self.make_trainer)
        except (ValueError, MisconfigurationException) as error:
            raise UsageError(str(error)) from error
        if wrong:
            raise UsageError("\n".join(wrong))
        try:
            policy = Policy.load(self.policy_config)
        except (ValueError, OSError) as error:
            raise UsageError(f"--policy.model {self.policy_config.model}: {error}") from error
        try:
            runner.parts = self.parts.rendered(policy)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if wrong := runner.parts.misfits_with(policy):
            raise UsageError("\n".join(wrong))
        if not self.config.resume:
            write_text(out / "config.yaml", self.parser.dump(self.config, skip_unset=False))
        return runner, policy

    def _run_folder(self) -> Path:
        if self.config.resume:
            out = Path(self.config.resume)
            self._check_unchanged(out / "config.yaml")
            return out
        chosen = (self.choices[group].name.rpartition(".")[2] for group in ("algo", "consolidate"))
        out = Path(self.config.out or "runs/" + "-".join([time.strftime("%Y%m%d-%H%M%S"), *chosen]))
        if (out / "state.json").exists():
            raise UsageError(
                f"--out {out} holds a run already; go on with it by --resume {out}, or name another folder"
            )
        return out

    def _check_unchanged(self, saved: Path) -> None:
        """A resumed run must be the run that was begun."""
        before = dict(_flat(yaml.safe_load(saved.read_text(encoding="utf-8"))))
        now = dict(_flat(yaml.safe_load(self.parser.dump(self.config, skip_unset=False))))
        changed = [
            f"--resume: --{key} was {before.get(key)!r} when the run began and is {now.get(key)!r} now; begin a new run"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(_FREE_ON_RESUME)
        ]
        if changed:
            raise UsageError("\n".join(changed))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings with dotted keys."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _add_swappable(parser: LightningArgumentParser, group: str, choice: Choice) -> None:
    """`--GROUP NAME`, and the fields of the class that was chosen."""
    swappable = SWAPPABLE[group]
    known = ", ".join([*sorted(names(swappable.registry)), *([NONE] if group == "consolidate" else [])])
    what = f"{swappable.what}: {known}, or a class path (default: {swappable.default})"
    if choice.cls is not None:
        parser.add_class_arguments(choice.cls, group, instantiate=False)
        action = next(action for action in parser._actions if f"--{group}" in action.option_strings)
        action.metavar, action.help = "NAME", what
    parser.add_argument(f"--{group}.name", type=str, default=choice.name, help=what, metavar="NAME")


def main(argv: Sequence[str] | None = None) -> int:
    """The `rloop-fit` command.

    Exit codes: 0 done, 1 a fault during the run, 2 wrong input, 130 or 143 stopped by Ctrl-C or SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _quieten()
    with StopSignals() as signals:
        try:
            return _fit(arguments, "--debug" in arguments, signals)
        except Stopped as stopped:
            print(f"\nrloop-fit: {stopped}; no run was begun", file=sys.stderr)
            return stopped.exit_code


def _fit(arguments: Sequence[str], debug: bool, signals: StopSignals) -> int:
    try:
        runner, policy = RLoopCLI(arguments).prepare()
    except UsageError as error:
        return _complain(error, debug, code=2)
    go_on = f"rloop-fit --resume {shlex.quote(str(runner.out))}"
    try:
        state = runner.run(policy, signals)
    except StateError as error:
        return _complain(error, debug, code=2)
    except (NotEnoughGroupsError, WorkerStartError) as error:
        return _complain(error, debug, code=1)
    except (RunFault, OSError) as error:
        return _complain(error, debug, code=1, advice=f"mend the cause, then go on with: {go_on}")
    except (Stopped, SIGTERMException) as error:  # Lightning's own comes where a step ended the phase
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGTERM)
        saved = stopped.saved or "what came after the newest checkpoint is repeated"
        print(f"\nrloop-fit: {stopped}; {saved}; go on with: {go_on}", file=sys.stderr)
        return stopped.exit_code
    out = runner.out
    print(f"\n{(out / 'results.md').read_text(encoding='utf-8')}")
    print(f"{state.selected} is in {out / 'final'}; table, plots, metrics.csv and TensorBoard logs are in {out}")
    return 0


def _complain(error: Exception, debug: bool, code: int, advice: str = "") -> int:
    if debug:
        raise error
    for line in [*str(error).splitlines(), *([advice] if advice else [])]:
        print(f"rloop-fit: error: {line}", file=sys.stderr)
    return code


def _quieten() -> None:
    """Our messages, without what libraries say at every phase; their warnings stay."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("rloop_lightning").setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning's own use of torch, which a user can do nothing about.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
