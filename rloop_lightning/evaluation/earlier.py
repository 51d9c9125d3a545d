"""A policy's evaluation compared with those of earlier policies of the run: forgetting and coverage.

earlier_metrics(evaluation.problems, [run / "round-0" / "evaluations" / "base.parquet", ...])
# {"eval/test/forgetting_base": 0.125, "eval/test/forgetting_base_low": 0.04, ...}
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rloop_lightning.evaluation.set_metrics import with_bounds
from rloop_lightning.system.checksums import checksums, damaged_files

_log = logging.getLogger(__name__)

_COLUMNS = ["set", "problem_id", "samples", "successes"]


def earlier_metrics(problems: pa.Table, earlier: Sequence[Path]) -> dict[str, float]:
    """How a policy's evaluation compares with those of earlier policies, for each of its sets.

    A problem is solved by a policy if any of its rollouts is a success. Each metric has the ends of its 95 % interval
    over problems, `NAME_low` and `NAME_high`. A metric without data is left out.

    - `eval/SET/forgetting_base`, `.../forgetting_previous`: the share of the problems solved by the first and by the
      last of the earlier policies that this one fails. The interval is over problems that the earlier policy solves.
    - `eval/SET/coverage_now`, `.../coverage_ever`, `.../coverage_lost`: the share of problems that this policy solves,
      that this or an earlier one solves, and that only earlier ones solve.

    Args:
        problems: the rows of this policy's record (record.py), of one or more sets.
        earlier: the records of the earlier policies, in the order of training. A missing one, one that can't be read
            and one of other problems or another number of rollouts are left out.
    """
    tables = [_read(path) for path in earlier]
    metrics: dict[str, float] = {}
    for name in problems["set"].unique().to_pylist():
        counts = _counts(problems, name)
        now = _solved(counts)
        found: dict[str, float] = {}
        solved = [_solved_before(table, name, counts) for table in tables]
        for title, before in (("base", solved[:1]), ("previous", solved[-1:])):
            if any(mask is not None and mask.any() for mask in before):
                found |= with_bounds(f"forgetting_{title}", ~now[before[0]])
        ever = np.any([now, *(mask for mask in solved if mask is not None)], axis=0)
        for title, mask in (("now", now), ("ever", ever), ("lost", ever & ~now)):
            found |= with_bounds(f"coverage_{title}", mask)
        metrics |= {f"eval/{name}/{key}": value for key, value in found.items() if math.isfinite(value)}
    return metrics


Counts = dict[str, tuple[int, int]]
"""Samples and successes by problem id."""


def _read(path: Path) -> pa.Table | None:
    if not path.exists():
        return None
    if path.name in checksums(path.parent) and (damage := damaged_files(path.parent, [path.name])):
        _log.warning(f"{path} {damage[path.name]}; forgetting and coverage leave it out")
        return None
    try:
        return pq.read_table(path, columns=_COLUMNS)
    except (OSError, pa.ArrowException) as error:
        _log.warning(f"{path} is not the record of an evaluation; forgetting and coverage leave it out ({error})")
        return None


def _counts(table: pa.Table, name: str) -> Counts:
    rows = table.filter(pc.field("set") == name)
    columns = (rows[column].to_pylist() for column in ("problem_id", "samples", "successes"))
    return {problem_id: (samples, successes) for problem_id, samples, successes in zip(*columns, strict=True)}


def _solved(counts: Counts) -> np.ndarray:
    """Whether each problem is solved [P], by problem id."""
    return np.array([counts[problem_id][1] > 0 for problem_id in sorted(counts)], dtype=bool)


def _solved_before(table: pa.Table | None, name: str, now: Counts) -> np.ndarray | None:
    """Whether an earlier policy solved each problem [P]; None if its evaluation is of other problems or rollouts."""
    counts = {} if table is None else _counts(table, name)
    same = counts.keys() == now.keys() and all(counts[key][0] == now[key][0] for key in now)
    return _solved(counts) if same else None
