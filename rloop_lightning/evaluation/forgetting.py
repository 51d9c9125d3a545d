"""The forgetting rate between two policies: the share of solved problems that the later one fails.

forgetting_rates("run/round-0/evaluations/base.parquet", "run/round-1/evaluations/explored.parquet")
# {"test": 0.125, "ood": 0.5}
forgetting_matrix([base, explored, consolidated], "test")  # [3, 3]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from rloop_lightning.evaluation.record import read_record
from rloop_lightning.system.terminal import one_line


def forgetting_rate(solved_before: Tensor, solved_after: Tensor) -> Tensor:
    """F(a -> b) = |solved at a, not at b| / |solved at a|, over a fixed problem set.

    0 means nothing was forgotten, 1 everything. Problems that only b solves don't count. NaN if a solved nothing.

    Args: solved_before, solved_after [N] bool, over the same problems in the same order. Returns a float64 scalar.
    Raises ValueError if the two differ in length.
    """
    if solved_before.shape != solved_after.shape:
        raise ValueError(
            "the two evaluations must be of the same problems, got "
            f"{len(solved_before)} before and {len(solved_after)} after"
        )
    before, after = solved_before.bool(), solved_after.bool()
    return (before & ~after).sum().double() / before.sum()


def forgetting_rates(before: str | Path, after: str | Path) -> dict[str, float]:
    """The forgetting rate between two recorded evaluations, for each set that both contain.

    A problem is solved if any of its rollouts is a success.

    Args:
        before: the record of the earlier evaluation (record.py).
        after: the record of the later evaluation.

    Raises:
        ValueError: a file is not a record, no set is in both, or the two differ in the problems of a set or in the
            number of rollouts of a problem.
    """
    earlier, later = (_counts_by_set(Path(path)) for path in (before, after))
    common = [name for name in earlier if name in later]
    if not common:
        raise ValueError(
            f"no set is in both evaluations: {before} has {_listed(earlier)}, and {after} has {_listed(later)}"
        )
    return {name: _rate(name, earlier[name], later[name]) for name in common}


def forgetting_matrix(records: Sequence[str | Path], name: str) -> np.ndarray:
    """The forgetting rate between every two records on the set `name`.

    Args:
        records: M records, in the order of training.
        name: the set.

    Returns:
        [M, M] float64: row a, column b is F(a -> b). NaN in the rows of policies that solve nothing.

    Raises:
        ValueError: as `forgetting_rates`, or a record lacks the set.
    """
    paths = [Path(path) for path in records]
    counts = []
    for path in paths:
        by_set = _counts_by_set(path)
        if name not in by_set:
            raise ValueError(f"{path} has no set {one_line(name)}; it has {_listed(by_set)}")
        counts.append(by_set[name])
    return np.array([[_rate(name, before, after) for after in counts] for before in counts]).reshape(2 * [len(paths)])


Counts = dict[str, tuple[int, int]]
"""Samples and successes by problem id."""


def _counts_by_set(path: Path) -> dict[str, Counts]:
    table = read_record(path)
    return {name: _counts(table.filter(pc.field("set") == name)) for name in table["set"].unique().to_pylist()}


def _counts(table: pa.Table) -> Counts:
    columns = (table[name].to_pylist() for name in ("problem_id", "samples", "successes"))
    return {problem_id: (samples, successes) for problem_id, samples, successes in zip(*columns, strict=True)}


def _rate(name: str, before: Counts, after: Counts) -> float:
    if differing := sorted(before.keys() ^ after.keys()):
        raise ValueError(f"set {name}: {len(differing)} problems are in one evaluation only: {_listed(differing)}")
    other_counts = [problem_id for problem_id in before if before[problem_id][0] != after[problem_id][0]]
    if other_counts:
        raise ValueError(
            f"set {name}: {len(other_counts)} problems have another number of rollouts (--eval.samples) in the later "
            f"evaluation: {_listed(other_counts)}"
        )
    solved = [torch.tensor([counts[problem_id][1] > 0 for problem_id in before]) for counts in (before, after)]
    return float(forgetting_rate(*solved))


def _listed(names: Sequence[str] | dict[str, Counts]) -> str:
    """The first names, for a message."""
    shown = list(names)[:3]
    return ", ".join(map(one_line, shown)) + (" ..." if len(names) > len(shown) else "")
