"""The flags of Lightning's Trainer: those that a run does not take, and the Trainer that is made of the others.

A phase is one pass over its stream, with manual optimization, and one fresh Trainer. What counts epochs, batches or
steps of a Trainer would count them in each phase anew, and what leaves out checkpoints or metrics would leave nothing
to resume from.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import ProgressBar

from rloop_lightning.cli.parse_errors import reason_in
from rloop_lightning.cli.yaml_text import YAMLFault, load_yaml
from rloop_lightning.run.trainer import callback_faults, profiler_of, strategy_of
from rloop_lightning.system.fields import plain
from rloop_lightning.system.terminal import one_line

_ITSELF = "the loop sets this itself; leave it out"
_LENGTH = "the loop sets this itself; leave it out, and give --loop.rounds and --loop.explore_steps"
_SIZE = "the size of a run is --loop.explore_steps and --loop.problems_per_step; leave this out"
_EVALUATION = "evaluation has options of its own, --eval.every_n_steps and --eval.max_problems; leave this out"

REFUSED: Mapping[str, str] = {
    "max_epochs": _LENGTH,
    "min_epochs": _LENGTH,
    "max_steps": _LENGTH,
    "min_steps": _LENGTH,
    "max_time": "to limit the time of a run, stop it with `timeout 12h rloop-fit ...` and go on with --resume",
    "fast_dev_run": "for a short run, give --loop.rounds 1 --loop.explore_steps 1 --eval.max_problems 4",
    "limit_train_batches": _SIZE,
    "overfit_batches": _SIZE,
    "limit_val_batches": _EVALUATION,
    "limit_test_batches": _EVALUATION,
    "limit_predict_batches": _EVALUATION,
    "val_check_interval": _EVALUATION,
    "check_val_every_n_epoch": _EVALUATION,
    "num_sanity_val_steps": _EVALUATION,
    "inference_mode": "generation and evaluation never compute gradients; leave it out",
    "accumulate_grad_batches": "mini-batches are --algo.updates_per_step and --consolidate.rollouts_per_update, and "
    "what fits in memory at once is --policy.max_tokens_per_micro_batch; leave it out",
    "gradient_clip_val": "gradients are clipped by --algo.max_grad_norm and --consolidate.max_grad_norm; leave it out",
    "gradient_clip_algorithm": "gradients are clipped by their norm; leave it out",
    "barebones": "a run needs its checkpoints and metrics; leave it out",
    "plugins": "the loop chooses them; leave it out, and give --trainer.precision for the precision",
    "sync_batchnorm": "language models have no batch norm; leave it out",
    "model_registry": "the trained policy is a plain folder, final/ in the run folder; leave it out",
    "enable_checkpointing": "checkpoints are saved every --loop.checkpoint_every_n_steps; leave it out",
    "default_root_dir": "the run folder is --out; leave it out",
    "enable_model_summary": _ITSELF,
    "log_every_n_steps": _ITSELF,
    "use_distributed_sampler": _ITSELF,
    "reload_dataloaders_every_n_epochs": _ITSELF,
}

_DEFAULTS: Mapping[str, Any] = {
    name: parameter.default for name, parameter in inspect.signature(L.Trainer.__init__).parameters.items()
}


def without_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the group `trainer`, without refused flags at Lightning's default, which change nothing."""
    return {name: value for name, value in settings.items() if not _changes_nothing(name, value)}


def flags_without_defaults(flags: Sequence[str]) -> list[str]:
    """The same for a command line, `--flag=value` each."""
    kept = []
    for flag in flags:
        name, _, value = flag.partition("=")
        try:
            given = load_yaml(value)
        except YAMLFault:
            given = value
        if not (name.startswith("--trainer.") and _changes_nothing(name.removeprefix("--trainer."), given)):
            kept.append(flag)
    return kept


def without_enums(settings: Any) -> Any:
    """The settings with text in place of enumerations, which are defaults of some callbacks and YAML can't hold."""
    if isinstance(settings, Namespace):
        for name, value in vars(settings).items():
            settings[name] = without_enums(value)
    if isinstance(settings, list):
        return [without_enums(value) for value in settings]
    return settings.value if isinstance(settings, Enum) else settings


def trainer_from(parser: ArgumentParser, settings: Namespace, fixed: Mapping[str, Any]) -> L.Trainer:
    """A new Trainer with the user's flags and the loop's arguments.

    The user's callbacks come before those of the loop. The loop makes the loggers, once for all phases.

    Args:
        parser: the parser of the flags.
        settings: the accepted flags.
        fixed: the loop's arguments.

    Raises:
        ValueError: it can't be made; names the flags.
    """
    given, fixed = _objects_of(parser, settings), dict(fixed)
    users = given.pop("callbacks", None)
    users = users if isinstance(users, list) else [users]
    fixed["callbacks"] = [*(one for one in users if one), *fixed.get("callbacks", [])]
    bars = [callback for callback in fixed["callbacks"] if isinstance(callback, ProgressBar)]
    shown = [] if given.get("enable_progress_bar") is False else bars[:1]  # the user's own, if there is one
    fixed["callbacks"] = [callback for callback in fixed["callbacks"] if callback not in bars or callback in shown]
    if isinstance(profiler := given.get("profiler"), str):
        given["profiler"] = profiler_of(profiler, Path(fixed.get("default_root_dir", ".")))
    given["strategy"] = strategy_of(given.get("strategy", "auto"), given.get("num_nodes") or 1)
    if wrong := callback_faults(fixed["callbacks"]):
        raise ValueError("\n".join(wrong))
    try:
        return L.Trainer(**{**given, **fixed})
    except Exception as error:  # Lightning raises many kinds
        raise ValueError(_to_blame(given, fixed, error)) from error


def _objects_of(parser: ArgumentParser, settings: Namespace) -> dict[str, Any]:
    """The values of the flags, with new instances of loggers, callbacks and profilers.

    Raises:
        ValueError: some of them can't be made; names their flags.
    """
    made, wrong = {}, []
    for name, value in vars(settings).items():
        if name == "logger":
            continue
        if not isinstance(value, (Namespace, Mapping, list)):
            made[name] = plain(value)
            continue
        try:
            one = Namespace(trainer=Namespace({name: value})).clone()
            made[name] = plain(parser.instantiate(one, instantiate_groups=False).trainer[name])
        except Exception as error:  # the constructor of any class
            wrong.append(f"--trainer.{name}: {why_not_made(error)}")
    if wrong:
        raise ValueError("\n".join(wrong))
    return made


def why_not_made(error: Exception) -> str:
    """Why an object of a flag can't be made, in one line."""
    message = str(error)
    package = re.search(r"Requirement '([\w.-]+)|No module named '([\w-]+)", message)
    if package is not None:
        needing = re.search(r"class_path '[\w.]*?(\w+)'", message)
        name = package[1] or package[2]
        return f"{needing[1] if needing else 'it'} needs the package {name}: pip install {name}"
    return one_line(reason_in(message) or message, limit=300)


def _to_blame(given: Mapping[str, Any], fixed: Mapping[str, Any], error: Exception) -> str:
    """Why Lightning makes no Trainer, with the flag without which it would.

    Args:
        given: the user's arguments.
        fixed: the loop's arguments.
        error: what Lightning raised.
    """
    reason = " ".join(str(error).split())
    for name, value in given.items():
        if value == _DEFAULTS.get(name):
            continue
        try:
            L.Trainer(**{**{other: given[other] for other in given if other != name}, **fixed})
        except Exception:  # another flag is to blame, or several are
            continue
        return f"--trainer.{name} {one_line(str(value))}: {reason}"
    return f"--trainer: {reason}"


def _changes_nothing(name: str, value: Any) -> bool:
    return name in REFUSED and value == _DEFAULTS[name] and type(value) is type(_DEFAULTS[name])
