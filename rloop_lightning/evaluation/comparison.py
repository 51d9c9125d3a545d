"""The paired comparison of two evaluations of the same problems.

found = compare_records("a/evaluation.parquet", "b/evaluation.parquet", "test", ks=(1, 8))
found.differences[8].interval       # pass@8 of b minus pass@8 of a
found.gained                        # ids of the problems that b solves and a does not
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from rloop_lightning.evaluation.record import read_record
from rloop_lightning.evaluation.record_values import pass_at_k_values
from rloop_lightning.evaluation.statistics import Difference, Interval, difference, interval
from rloop_lightning.system.terminal import one_line


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on a set, and the difference between them: second minus first.

    Args:
        name: the set.
        problems: number of problems.
        samples: rollouts per problem that decide whether it is solved: the first ones, as many of both evaluations.
        intervals: by k, pass@k of each with its interval.
        differences: by k, pass@k of the second minus that of the first.
        gained: ids of problems that only the second solves, in the order of the set.
        lost: ids of problems that only the first solves.
        both: ids of problems that both solve.
        neither: ids of problems that neither solves.
    """

    name: str
    problems: int
    samples: int
    intervals: Mapping[int, tuple[Interval, Interval]]
    differences: Mapping[int, Difference]
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    both: tuple[str, ...]
    neither: tuple[str, ...]


def compare_records(first: str | Path, second: str | Path, name: str, ks: Sequence[int] | None = None) -> Comparison:
    """Compare two evaluations on the set `name`, problem by problem.

    A problem is solved if any of its first n rollouts is a success, n being the smaller number of rollouts.

    Args:
        first: the record of an evaluation (record.py).
        second: the record to compare with it.
        name: the set.
        ks: the values of k for pass@k; None takes those of 1, 8 and 32 that both have enough rollouts for.

    Raises:
        ValueError: a file is not a record or lacks the set, a problem has fewer than k rollouts, or the two differ in
            their problems.
    """
    right = [_right(Path(path), name) for path in (first, second)]
    if differing := sorted(right[0].keys() ^ right[1].keys()):
        raise ValueError(
            f"set {one_line(name)}: {len(differing):,} problems are in one of {first} and {second} only, such as "
            f"{one_line(differing[0])}; evaluate both on the same problems (--data, --eval.max_problems)"
        )
    samples = min((len(one) for found in right for one in found.values()), default=0)
    chosen = [k for k in (1, 8, 32) if k <= samples] if ks is None else sorted(set(ks))
    values = {k: pass_at_k_values([first, second], name, k)[1] for k in chosen}
    solved = [{problem: any(one[:samples]) for problem, one in found.items()} for found in right]
    ids = list(right[0])

    def where(before: bool, after: bool) -> tuple[str, ...]:
        return tuple(one for one in ids if (solved[0][one], solved[1][one]) == (before, after))

    return Comparison(
        name=name,
        problems=len(ids),
        samples=samples,
        intervals={k: (interval(found[0]), interval(found[1])) for k, found in values.items()},
        differences={k: difference(found[1], found[0]) for k, found in values.items()},
        gained=where(False, True),
        lost=where(True, False),
        both=where(True, True),
        neither=where(False, False),
    )


def sets_of(record: str | Path) -> list[str]:
    """The sets of a record, in order.

    Raises:
        ValueError: the file is not a record.
    """
    return read_record(Path(record))["set"].unique().to_pylist()


def _right(path: Path, name: str) -> dict[str, list[bool]]:
    """By problem id, whether each rollout is a success, in the order of the set."""
    rows: pa.Table = read_record(path).filter(pc.field("set") == name)
    return dict(zip(rows["problem_id"].to_pylist(), rows["right"].to_pylist(), strict=True))
