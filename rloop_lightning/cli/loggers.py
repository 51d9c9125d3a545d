"""The user's loggers, `--trainer.logger`: made once for all phases of a run, and continued by a resume."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.loggers import Logger

from rloop_lightning.cli.trainer_flags import why_not_made
from rloop_lightning.run.loggers import LoggerIdentity, class_path
from rloop_lightning.system.imports import import_object

_IDENTITY = ("run_id", "experiment_key", "version")
"""The argument by which a logger's class takes the identity of an earlier run: MLflow's, Comet's, or of all others."""


def user_loggers(parser: ArgumentParser, setting: Any, known: Sequence[LoggerIdentity]) -> list[Logger]:
    """The loggers of a setting.

    Args:
        parser: the parser of the setting.
        setting: the accepted value of `--trainer.logger`.
        known: the loggers that the run had before a resume. A logger of the same class at the same place continues
            where it ended, unless its settings name another version.

    Raises:
        ValueError: some of them can't be made; one line each.
    """
    # Lightning's MLFlowLogger writes to a folder by default, which MLflow 3.17 refuses without this.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    given = setting if isinstance(setting, list) else [setting]
    made, wrong = [], []
    for place, one in enumerate(entry for entry in given if isinstance(entry, Namespace)):
        settings = one.clone()
        if place < len(known):
            _continue(settings, known[place])
        try:
            made.append(_make(parser, settings))
        except Exception as error:  # the constructor of any class
            wrong.append(f"--trainer.logger: {why_not_made(error)}")
    if wrong:
        raise ValueError("\n".join(wrong))
    return made


def _continue(settings: Namespace, known: LoggerIdentity) -> None:
    """Set the version of a known logger, if the settings leave it to the logger."""
    cls = import_object(settings.class_path)
    arguments = inspect.signature(cls.__init__).parameters
    name = next((name for name in _IDENTITY if name in arguments), None)
    if name and known.class_path == class_path(cls) and settings.get(f"init_args.{name}") is None:
        settings[f"init_args.{name}"] = known.version


def _make(parser: ArgumentParser, settings: Namespace) -> Logger:
    group = Namespace(trainer=Namespace(logger=settings))
    return parser.instantiate(group, instantiate_groups=False).trainer.logger
