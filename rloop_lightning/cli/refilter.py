"""`rloop-data refilter`: what the filter of a run would give at other thresholds, from the stored pools, without a run.

rloop-data refilter runs/NAME --filter.max_success_rate 0.05,0.1,0.2,0.5 --filter.rate_over run
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.stored_run import StoredRun
from rloop_lightning.cli.stored_run_options import made, run_and_options
from rloop_lightning.errors import DamagedError
from rloop_lightning.rollouts.filter import FilterConfig
from rloop_lightning.rollouts.refilter import Outcome
from rloop_lightning.rollouts.refilter import refilter as outcomes_of
from rloop_lightning.seeds import derive_seed
from rloop_lightning.system.fields import LeftOpenUnitInterval, NonNegativeInt

USAGE = "rloop-data refilter RUN --filter.max_success_rate 0.05,0.1,0.2,0.5 [--filter.FIELD VALUE ...]"
_THRESHOLDS = (0.05, 0.1, 0.2, 0.5)
_LIST = "--filter.max_success_rate"


@dataclass(frozen=True)
class Refilter:
    """The settings of the filter that are tried. Those that are not given are the run's.

    Args:
        max_success_rate: thresholds, as in 0.05,0.1,0.2; null takes 0.05, 0.1, 0.2 and 0.5 (fractions).
        rate_over: the rollouts that a success rate counts: those of the `round`, or of the whole `run` so far.
        finished_only: leave out successes that were truncated at the length limit.
        max_per_problem: maximum number of rollouts per problem; 0 is no limit.
        deduplicate: among a problem's rollouts with identical completion tokens, keep one.
    """

    max_success_rate: list[LeftOpenUnitInterval] | None = None
    rate_over: Literal["round", "run"] | None = None
    finished_only: bool | None = None
    max_per_problem: NonNegativeInt | None = None
    deduplicate: bool | None = None


def refilter(arguments: Sequence[str]) -> list[str]:
    """The lines of the table.

    Raises:
        UsageError: the input is wrong, or the run has no pool; names all errors.
    """
    path, options = run_and_options(arguments, [("filter", Refilter)], USAGE, lists=[_LIST])
    given = made(Refilter, options.filter)
    thresholds = sorted(set(_THRESHOLDS if given.max_success_rate is None else given.max_success_rate))
    if not thresholds:
        raise UsageError(f"{_LIST}: give at least one threshold")
    run = StoredRun.at(path)
    config = _config(run, given)
    pools = run.folder.existing_pools()
    if not pools:
        raise UsageError(f"{path}: it has no pool yet")
    seed = run.settings.get("seed_everything", 0)
    lines = [_describe(config), "", *_HEADER]
    for number, pool in pools.items():
        earlier = [other for before, other in pools.items() if before < number]
        try:
            found = outcomes_of(pool, config, thresholds, derive_seed(seed, "consolidate", number), earlier=earlier)
        except DamagedError as error:
            raise UsageError(str(error)) from error
        lines += [_line(number, outcome) for outcome in found]
    return lines


def _config(run: StoredRun, given: Refilter) -> FilterConfig:
    """The run's filter with what is given."""
    of_run = run.group("filter")
    names = [one.name for one in fields(Refilter) if one.name != "max_success_rate"]
    known = {name: of_run[name] for name in names if name in of_run}
    try:
        config = FilterConfig(**known)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{run.folder.out}: its settings are damaged: {error}") from error
    changes = {name: value for name in names if (value := getattr(given, name)) is not None}
    return replace(config, **changes)


_COLUMNS = ("round", "max_success_rate", "rollouts", "problems", "mean success rate", "mean length, tokens", "finished")
_WIDTHS = tuple(map(len, _COLUMNS))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True)) + " |"


_HEADER = (_row(_COLUMNS), "| " + " | ".join("-" * (width - 1) + ":" for width in _WIDTHS) + " |")


def _describe(config: FilterConfig) -> str:
    limit = (
        f"at most {config.max_per_problem} rollouts per problem" if config.max_per_problem else "no limit per problem"
    )
    return (
        f"success rates over the {config.rate_over}, {limit}, truncated successes "
        f"{'left out' if config.finished_only else 'kept'}, copies {'left out' if config.deduplicate else 'kept'}; "
        "finished: share of the hard problems' successes that were not truncated"
    )


def _line(number: int, outcome: Outcome) -> str:
    return _row(
        [
            str(number),
            f"{outcome.max_success_rate:g}",
            f"{outcome.rollouts:,}",
            f"{outcome.problems:,}",
            _cell(outcome.success_rate, ".3f"),
            _cell(outcome.length, ",.1f"),
            _cell(outcome.finished, ".0%"),
        ]
    )


def _cell(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
