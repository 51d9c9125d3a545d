"""A run's loggers: TensorBoard, and those of `--trainer.logger`, each with one history over all rounds and phases.

    loggers = RunLoggers(folder, users)  # before `mend` drops the rows of metrics.csv that the run repeats
    log = loggers.phase(stage)
    Trainer(logger=log.loggers)
    log({"rollout/reward_mean": 0.25}, step=1)

The step of a record is the number of its row in metrics.csv, from 0: every training step of every phase and every
evaluation between phases counts one. Metrics of a consolidation have the prefix `consolidate/`, so that its loss is not
part of the exploration's curve. Every record has `round`, from 0 as in metrics.csv.

A resumed run repeats the steps after its newest checkpoint. TensorBoard then hides their first version. The user's
loggers don't get them again, because their metrics are the same, unless the resume changes settings.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from rloop_lightning.errors import DamagedError
from rloop_lightning.evaluation.samples import SampleCompletion
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.logger_faults import name_failed_writes, open_files
from rloop_lightning.run.logger_kinds import begins_run, end_run, log_completions, named_for, warn_of_missing_tables
from rloop_lightning.run.mending import History, mend, rows_on_disk
from rloop_lightning.run.metrics_csv import KEYS, result_step
from rloop_lightning.run.run_metrics import RunMetrics
from rloop_lightning.run.settings import flat, recorded_settings
from rloop_lightning.run.state import STATE_VERSION, Stage, plan
from rloop_lightning.system.json_file import read_json, write_json

_log = logging.getLogger(__name__)


class RunLoggers:
    """All loggers of a run. Make it before `mend` drops the rows of metrics.csv that the run repeats.

    Args:
        folder: the run folder.
        users: the user's loggers, each one instance for all phases.
        tensorboard: whether to log to TensorBoard.
        repeats_differ: whether this resume changes settings, so that repeated steps have other metrics.
    """

    def __init__(
        self,
        folder: RunFolder,
        users: Sequence[Logger] = (),
        *,
        tensorboard: bool = True,
        repeats_differ: bool = False,
    ) -> None:
        self._folder = folder
        self._users = users
        self._wants_tensorboard = tensorboard
        self._own: list[_TensorBoard] | None = None  # until the first phase
        self._newest: PhaseLog | None = None
        self._begun: list[Logger] = []
        # metrics.csv has fewer rows if an earlier resume was killed before it had repeated all steps.
        known = max(rows_on_disk(folder), known_loggers(folder).logged)
        self._logged = 0 if repeats_differ else known

    def phase(self, stage: Stage) -> PhaseLog:
        """The log of a phase. Rows of metrics.csv that the phase is about to repeat are dropped."""
        earlier = itertools.takewhile(lambda one: one != stage, plan(stage.round + 1, consolidates=True))
        history = mend(self._folder, [*earlier], stage)
        if self._own is None:
            self._own = self._begin(history)
        next_step = result_step(stage) if stage.phase == "evaluate" else self._folder.steps_done(stage) + 1
        run_step = history.steps - next_step
        record = RunMetrics(self._folder, stage, run_step=run_step)
        self._newest = PhaseLog(record, self._own, self._users, stage, run_step=run_step, logged=self._logged)
        return self._newest

    def log_completions(self, samples: Mapping[str, Sequence[SampleCompletion]], step: int) -> None:
        """Log sample completions of an evaluation, by set, at a step of the newest phase."""
        assert self._newest is not None
        self._newest.log_completions(samples, step)

    def close(self) -> None:
        """End the runs that the user's loggers have begun in this process."""
        while self._begun:
            end_run(self._begun.pop())

    def _begin(self, history: History) -> list[_TensorBoard]:
        """Open TensorBoard, give new loggers the settings, and note who the user's loggers are, for a resume."""
        self._begun = [logger for logger in self._users if begins_run(logger)]
        for logger in self._users:
            name_failed_writes(logger)
        own = []
        settings = dict(flat(recorded_settings(self._folder)))
        if self._wants_tensorboard:
            own.append(_TensorBoard(self._folder, purge_step=history.steps))
            name_failed_writes(own[0])
            if settings and not self._folder.loggers.exists():
                own[0].log_hyperparams(settings)
        known = known_loggers(self._folder)
        if known.fault:
            _log.warning(f"{known.fault}; it is written again, and loggers of --trainer.logger may repeat steps")
        for logger in self._users:
            if isinstance(logger, CSVLogger):
                self._replay(logger, history)
            if settings and LoggerIdentity.of(logger) not in known.loggers:
                logger.log_hyperparams(named_for(logger, settings))
            warn_of_missing_tables(logger)
        for logger in (*self._users, *own):
            open_files(logger)
        users = [vars(LoggerIdentity.of(logger)) for logger in self._users]
        write_json(self._folder.loggers, {"logged": self._logged, "loggers": users}, version=STATE_VERSION)
        return own

    def _replay(self, logger: CSVLogger, history: History) -> None:
        """Log the steps so far again: a CSVLogger that finds a file of its version begins it anew."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*exists and is not empty")
            for step, row in history.rows:
                metrics = {name: value for name, value in row.items() if name not in KEYS}
                logger.log_metrics(_named(metrics, row["round"], row["phase"]), step=step)


class PhaseLog:
    """Passes the metrics of one phase to all loggers of the run.

    Args:
        record: the phase's part of metrics.csv.
        own: the loop's other loggers.
        users: the user's loggers.
        stage: the phase.
        run_step: the step of the run at step 0 of the phase.
        logged: the user's loggers have the steps of the run before this, except a CSVLogger.
    """

    def __init__(
        self,
        record: RunMetrics,
        own: Sequence[Logger],
        users: Sequence[Logger],
        stage: Stage,
        *,
        run_step: int,
        logged: int,
    ) -> None:
        self.loggers = [*users, *own, record]
        self.run_step = run_step
        self._record = record
        self._stage = stage
        starts = [0 if isinstance(one, CSVLogger) else logged for one in users]
        self._starts = [*zip(users, starts, strict=True), *((one, 0) for one in own)]

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step of the phase, and flush."""
        if not metrics:
            return
        run_step = self.run_step + step
        for logger, start in self._starts:
            if run_step >= start:
                named = _named(metrics, self._stage.round, self._stage.phase)
                logger.log_metrics(named_for(logger, named), step=run_step)
                logger.save()
        # Last, so that a step which another logger could not write counts as not logged, and a resume logs it again.
        self._record.log_metrics(metrics, step=run_step)

    def log_completions(self, samples: Mapping[str, Sequence[SampleCompletion]], step: int) -> None:
        """Log sample completions of an evaluation, by set. Call it before the metrics of the step are logged."""
        run_step = self.run_step + step
        for logger, start in self._starts:
            if run_step >= start:
                for name, of_set in samples.items():
                    log_completions(logger, name, of_set, run_step)


@dataclass(frozen=True)
class LoggerIdentity:
    """What tells a user's logger from others: its class, and its version, run id or experiment key."""

    class_path: str
    version: int | str | None

    @classmethod
    def of(cls, logger: Logger) -> LoggerIdentity:
        return cls(class_path(type(logger)), logger.version)


def class_path(cls: type) -> str:
    """The class's name in loggers.json."""
    return f"{cls.__module__}.{cls.__qualname__}"


@dataclass(frozen=True)
class KnownLoggers:
    """The content of loggers.json.

    Args:
        logged: number of steps of the run that the loggers have.
        loggers: the user's loggers, in order.
        fault: why the file can't be read; empty if it can.
    """

    logged: int = 0
    loggers: tuple[LoggerIdentity, ...] = ()
    fault: str = ""


def known_loggers(folder: RunFolder) -> KnownLoggers:
    """The loggers that the run had before a resume."""
    if not folder.loggers.exists():
        return KnownLoggers()
    try:
        content, _ = read_json(folder.loggers, newest=STATE_VERSION, checked_since=1)
        return KnownLoggers(content["logged"] + 0, tuple(LoggerIdentity(**one) for one in content["loggers"]))
    except DamagedError as error:
        return KnownLoggers(fault=str(error))
    except (KeyError, TypeError):
        return KnownLoggers(fault=f"{folder.loggers} is damaged")


class _TensorBoard(TensorBoardLogger):
    """The run's TensorBoard log, with the settings but without Lightning's constant metric `hp_metric`."""

    def __init__(self, folder: RunFolder, purge_step: int) -> None:
        place = folder.tensorboard
        super().__init__(place.parent, place.name, version="", default_hp_metric=False, purge_step=purge_step)

    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        super().log_hyperparams(params, metrics, step)
        for summary in hparams(self._sanitize_params(params), {}):
            self.experiment._get_file_writer().add_summary(summary)


def _named(metrics: Mapping[str, float], round: int, phase: str) -> dict[str, Any]:
    """The metrics of a step with their names in the loggers."""
    prefix = "consolidate/" if phase == "consolidate" else ""
    return {**{f"{prefix}{name}": value for name, value in metrics.items()}, "round": round}
