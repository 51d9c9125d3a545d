"""`rloop-data export`: rollouts of a run as a data set for other trainers.

rloop-data export runs/NAME --what expert --format prompt-completion --out expert.parquet --max_per_problem 4
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.stored_run import StoredRun
from rloop_lightning.cli.stored_run_options import made, run_and_options
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.errors import DamagedError
from rloop_lightning.rollouts.selection import Selection
from rloop_lightning.run.export import Export, ExportConfig
from rloop_lightning.run.export_formats import Origin
from rloop_lightning.system.json_file import json_checksum

USAGE = "rloop-data export RUN --what expert|pool|successes --format messages|prompt-completion|verl --out FILE"


@dataclass(frozen=True)
class ProblemOptions:
    """How the problems of the run are read.

    Args:
        data: the run's problem set, if it is at another place now; it has to hold the same problems.
        trust: import the classes of others that the run's data settings name.
    """

    data: str | None = None
    trust: bool = False


OPTIONS = (ExportConfig, Selection, ProblemOptions)


def export(arguments: Sequence[str]) -> list[str]:
    """Write the file, and return what to say about it.

    Raises:
        UsageError: the input is wrong, or something of the run is gone; names all errors.
        OSError: the file can't be written.
    """
    path, options = run_and_options(arguments, [(None, cls) for cls in OPTIONS], USAGE, lists=["--rounds"])
    config, selection = made(ExportConfig, options), made(Selection, options)
    reading = made(ProblemOptions, options)
    run = StoredRun.at(path)
    if wrong := config.faults(run.folder):
        raise UsageError("\n".join(wrong))
    origin = Origin(run.state.run_id, run.model, json_checksum(dict(run.settings)))
    export = Export(run.folder, origin, config, selection, data_source=run.data_name)

    def problems() -> ProblemSource:
        return run.source(reading.data, trusted=reading.trust)

    try:
        written = export.write(None if config.without_prompts else problems, run.tokenizer())
    except (ValueError, DamagedError) as error:
        raise UsageError(str(error)) from error
    lines = [
        f"{config.out}: {written.rows:,} rows, {written.problems:,} problems, {written.tokens:,} completion tokens"
    ]
    if written.truncated and config.format != "verl":
        lines.append(
            f"{written.truncated:,} completions were cut at the length limit; --finish_reason stop leaves them out"
        )
    if written.copies:
        lines.append(
            f"{written.copies:,} copies of rollouts with the same tokens were left out, so success rates in the file "
            "are others; --deduplicate false keeps them"
        )
    return lines
