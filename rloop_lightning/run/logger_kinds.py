"""What differs between kinds of loggers: the names they take, tables of completions, and the end of a run.

| logger | sample completions of an evaluation |
| --- | --- |
| WandbLogger | a table `completions/SET` at the step |
| MLFlowLogger | a table `completions/SET/step-000012.json` among the artifacts; pandas is needed |
| TensorBoardLogger | a text `completions/SET` at the step |
| others | none |
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from typing import Any, TypeVar

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from rloop_lightning.evaluation.samples import SampleCompletion
from rloop_lightning.run.logger_faults import naming
from rloop_lightning.system.markdown import code

_log = logging.getLogger(__name__)

_NOT_MLFLOW = re.compile(r"[^a-zA-Z0-9_/. -]")
_MLFLOW_LONGEST = 250  # characters of a name
_COLUMNS = [field.name for field in fields(SampleCompletion)]

Value = TypeVar("Value")


def named_for(logger: Logger, values: Mapping[str, Value]) -> dict[str, Value]:
    """Metrics or settings under names that the logger takes: `eval/test/pass@8` is `eval/test/pass_at_8` in MLflow."""
    if not isinstance(logger, MLFlowLogger):
        return dict(values)
    return {_mlflow_name(name): value for name, value in values.items()}


def log_completions(logger: Logger, name: str, samples: Sequence[SampleCompletion], step: int) -> None:
    """Log sample completions of the set `name`, if the logger has a place for them.

    Raises:
        WriteError: they can't be written.
    """
    key, rows = f"completions/{name}", [list(asdict(sample).values()) for sample in samples]
    with naming(logger):
        match logger:
            case WandbLogger():
                logger.log_table(key, columns=_COLUMNS, data=rows, step=step)
            case MLFlowLogger() if find_spec("pandas") is not None:
                columns = {column: [row[place] for row in rows] for place, column in enumerate(_COLUMNS)}
                logger.experiment.log_table(logger.run_id, columns, f"{_mlflow_name(key)}/step-{step:06d}.json")
            case TensorBoardLogger():
                logger.experiment.add_text(key, _markdown(rows), step)


def warn_of_missing_tables(logger: Logger) -> None:
    """Warn if the logger can't have tables of completions, because a package is missing."""
    if isinstance(logger, MLFlowLogger) and find_spec("pandas") is None:
        _log.warning("--trainer.logger: MLFlowLogger gets no tables of completions: pip install pandas")


def begins_run(logger: Logger) -> bool:
    """Whether opening the logger begins a run that the process has to end (`end_run`)."""
    if not isinstance(logger, WandbLogger):
        return False
    import wandb

    return wandb.run is None  # else the logger joins the run of the user's code


def end_run(logger: Logger) -> None:
    """End the run of a logger that began it. Else W&B would take the next run of this process for the same one."""
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()


def _mlflow_name(name: str) -> str:
    """The name with `_` for characters that MLflow refuses, without empty parts and the middle of a long one."""
    taken = _NOT_MLFLOW.sub("_", name.replace("@", "_at_"))
    parts = [part for part in taken.split("/") if part.strip(". ")]
    short = "/".join(parts)
    half = _MLFLOW_LONGEST // 2 - 2
    return short if len(short) <= _MLFLOW_LONGEST else f"{short[:half]}...{short[-half:]}"


def _markdown(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as a Markdown table in which no text acts as Markdown."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *([code(str(cell), limit=4000) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
