"""Intervals of pass@k from the records of evaluations (record.py).

pass_at_k_interval(["run-0/round-2/evaluations/explored.parquet", "run-1/..."], "test", k=8)
pass_at_k_difference({0: "rloop-0/...", 1: "rloop-1/..."}, {0: "dapo-0/...", 1: "dapo-1/..."}, "test", k=8)
pass_at_k_interval([...], ["test", "ood"], k=8)     # the average over both sets
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rloop_lightning.evaluation.pass_at_k import pass_at_k
from rloop_lightning.evaluation.record import read_record
from rloop_lightning.evaluation.statistics import Difference, Interval, difference, interval
from rloop_lightning.system.checksums import digest
from rloop_lightning.system.terminal import one_line

Sets = str | Sequence[str]
"""A set, or the average over several: each counts the same, whatever its number of problems."""

AVERAGE = "average over sets"
_BY_CHANCE = 0.01  # share of verdicts in which a reward may differ from itself


def with_average(passes: Sequence[tuple[str, int]]) -> Iterator[tuple[str, Sequence[str], int]]:
    """Sets and their k, then the average over the sets, as label, sets and k.

    `validation` is not in the average, since choices are made on it.
    """
    for name, k in passes:
        yield name, [name], k
    sets = [name for name in dict.fromkeys(name for name, _ in passes) if name != "validation"]
    if len(sets) > 1:
        for k in dict.fromkeys(k for _, k in passes):
            if all((name, k) in passes for name in sets):
                yield AVERAGE, sets, k


def pass_at_k_values(records: Sequence[str | Path], name: str, k: int) -> tuple[list[str], np.ndarray]:
    """The problem ids of the set `name`, sorted, and the unbiased pass@k of each problem.

    Args:
        records: one record per seed.
        name: the set.
        k: completions.

    Returns:
        The ids, and the values [S, P] for S records.

    Raises:
        ValueError: a file is not a record or lacks the set, a problem has fewer than k rollouts or is listed twice, or
            the records differ in their problems.
    """
    if not records:
        raise ValueError("no record was given")
    by_record = [_by_problem(Path(path), name, k) for path in records]
    ids = sorted(by_record[0])
    for path, values in zip(records, by_record, strict=True):
        if differing := sorted(values.keys() ^ by_record[0].keys()):
            raise ValueError(
                f"set {one_line(name)}: {len(differing)} problems are in one of {records[0]} and {path} only, "
                f"such as {one_line(differing[0])}"
            )
    return ids, np.array([[values[problem_id] for problem_id in ids] for values in by_record])


def pass_at_k_interval(
    records: Sequence[str | Path], name: Sets, k: int, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """pass@k of the set `name` with its interval, over problems or, for several records, over seeds and problems.

    Args:
        records: one record per seed.
        name: the set, or several.
        k: completions.
        level: nominal coverage.
        seed: seed of the bootstrap draws.

    Raises:
        ValueError: as `pass_at_k_values`.
    """
    values, sets = _of_sets(records, name, k)
    return interval(values, sets=sets, level=level, seed=seed)


def pass_at_k_difference(
    first: Mapping[int, str | Path],
    second: Mapping[int, str | Path],
    name: Sets,
    k: int,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """pass@k of the first arm minus that of the second on the set `name`, with its interval.

    Problems are paired. Seeds are paired if both arms have the same ones; if only some are shared, none are paired, and
    the interval errs on the wide side.

    Args:
        first: records by seed.
        second: records by seed.
        name: the set, or several.
        k: completions.
        level: nominal coverage.
        seed: seed of the bootstrap draws.

    Raises:
        ValueError: as `pass_at_k_values`; the arms differ in their problems.
    """
    arms = [[records[key] for key in sorted(records)] for records in (first, second)]
    if not all(arms):
        raise ValueError("each arm needs a record")
    values, sets = _of_sets([*arms[0], *arms[1]], name, k)
    cut = len(first)
    paired = first.keys() == second.keys()
    return difference(values[:cut], values[cut:], paired_seeds=paired, sets=sets, level=level, seed=seed)


def of_compared_seeds(
    first: Mapping[int, Path], second: Mapping[int, Path]
) -> tuple[Mapping[int, Path], Mapping[int, Path]]:
    """The records by seed that a difference of two arms is taken of: those of the seeds that both have, which are then
    paired; all, if they share no seed.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return first, second
    return {seed: first[seed] for seed in shared}, {seed: second[seed] for seed in shared}


def other_verdicts(first: str | Path, second: str | Path) -> str | None:
    """What tells that two rewards judged the same rollouts differently, so that successes are not the same thing.

    Args:
        first: the record of an evaluation of the base policy, from which equal seeds sample the same.
        second: the same in another run.

    Returns:
        A sentence; None if the verdicts agree, but for a few such as of checks that timed out, or the rollouts are not
        the same: other problems, numbers or lengths.

    Raises:
        ValueError: a file is not a record.
    """
    one, other = (read_record(Path(path)) for path in (first, second))
    if any(one[column] != other[column] for column in ("set", "problem_id", "lengths")):
        return None
    verdicts = [pc.list_flatten(table["right"]).to_numpy() for table in (one, other)]
    if np.mean(verdicts[0] != verdicts[1]) <= _BY_CHANCE:
        return None
    counts = [pc.sum(table["successes"]).as_py() for table in (one, other)]
    return (
        f"of the same rollouts of the base policy, {counts[0]:,} are successes here and {counts[1]:,} there: the "
        "rewards judge differently, so pass@k can't be compared; evaluate the policies by one reward (rloop-eval RUN "
        "--reward NAME)"
    )


def _of_sets(records: Sequence[str | Path], name: Sets, k: int) -> tuple[np.ndarray, list[int]]:
    """Values [S, problems of all sets], and the number of problems of each set."""
    found = [pass_at_k_values(records, one, k)[1] for one in ([name] if isinstance(name, str) else name)]
    return np.concatenate(found, axis=1), [values.shape[1] for values in found]


def _by_problem(path: Path, name: str, k: int) -> dict[str, float]:
    """pass@k by problem id."""
    table = _counts(path)
    rows = table.filter(pc.field("set") == name)
    if not len(rows):
        sets = ", ".join(map(one_line, table["set"].unique().to_pylist()))
        raise ValueError(f"{path} has no set {one_line(name)}; it has {sets}")
    ids, samples = rows["problem_id"].to_pylist(), rows["samples"].to_numpy()
    if k > samples.min():
        few = one_line(ids[int(samples.argmin())])
        raise ValueError(f"pass@{k} needs {k} rollouts, but problem {few} of {path} has {samples.min()}")
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path} lists a problem of set {one_line(name)} twice")
    values = np.empty(len(rows))
    for count in np.unique(samples):
        chosen = samples == count
        successes = torch.from_numpy(rows["successes"].to_numpy()[chosen])
        values[chosen] = pass_at_k(successes, int(count), k).numpy()
    return dict(zip(ids, values.tolist(), strict=True))


def _counts(path: Path) -> pa.Table:
    """The counts of a record. The figures of a study ask for the same ones again and again."""
    try:
        return _read_counts(str(path), digest(path))
    except OSError:
        return read_record(path)  # which says what is wrong with it


@lru_cache(maxsize=1024)
def _read_counts(path: str, content: str) -> pa.Table:
    return read_record(Path(path)).select(["set", "problem_id", "samples", "successes"])
