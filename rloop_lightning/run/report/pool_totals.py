"""Counts of a run's pools in one pass over short columns: problems, coverage, lengths of right and wrong rollouts.

Memory grows with the number of problems and of rollout steps, not with the rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.rollouts.pool import shard_step
from rloop_lightning.rollouts.pool_scan import open_shard
from rloop_lightning.run.report.stored import ReportedRun

_COLUMNS = ["problem_id", "success", "length"]
LONG_COLUMNS = ("text", "completion_ids")


@dataclass(frozen=True)
class PoolShard:
    """A shard of a pool.

    Args:
        path: its file.
        round: its round, from 0.
        step: rollout step of the round, from 1.
        place: rollout steps of the run up to it.
        long_bytes: size of its texts and tokens in memory.
    """

    path: Path
    round: int
    step: int
    place: int
    long_bytes: int


@dataclass
class PoolTotals:
    """What the pass finds.

    Args:
        index: number of each problem, in the order in which they first occur.
        rollouts: by round, rollouts of each problem.
        successes: by round, successes of each problem.
        coverage: rows of place, problems seen, ever solved, and solved at their last visit.
        lengths: by success and round, rows of place and mean length.
        shards: the shards.
    """

    index: dict[str, int] = field(default_factory=dict)
    rollouts: dict[int, np.ndarray] = field(default_factory=dict)
    successes: dict[int, np.ndarray] = field(default_factory=dict)
    coverage: list[tuple[int, int, int, int]] = field(default_factory=list)
    lengths: dict[bool, dict[int, list[tuple[int, float]]]] = field(default_factory=lambda: {True: {}, False: {}})
    shards: list[PoolShard] = field(default_factory=list)

    def counts(self, rounds: range) -> tuple[np.ndarray, np.ndarray]:
        """Rollouts and successes of each problem [P] over some rounds."""
        return self._sum(self.rollouts, rounds), self._sum(self.successes, rounds)

    @property
    def rounds(self) -> range:
        """The rounds with a pool."""
        return range(max(self.rollouts, default=-1) + 1)

    @property
    def ids(self) -> list[str]:
        """The problems by number."""
        return list(self.index)

    def length_curves(self, success: bool) -> list[np.ndarray]:
        """Mean lengths of right or wrong rollouts, [N, 2] for each round."""
        return [np.array(points, dtype=float) for points in self.lengths[success].values()]

    def _sum(self, by_round: Mapping[int, np.ndarray], rounds: range) -> np.ndarray:
        total = np.zeros(len(self.index), dtype=np.int64)
        for number, counts in by_round.items():
            if number in rounds:
                total[: len(counts)] += counts
        return total


def pool_totals(run: ReportedRun) -> PoolTotals:
    """Count the pools of a run, in the order of its rollout steps.

    Raises:
        DamagedError: a file is not a shard of a pool, or damaged; the message names it.
    """
    totals = PoolTotals()
    ever = np.zeros(0, dtype=bool)
    now = np.zeros(0, dtype=bool)
    after = 0  # rollout steps of the run before the round, if metrics.csv does not say
    for number, pool in run.folder.existing_pools().items():
        start = run.starts.get(number, after)
        for path in sorted(pool.shards(), key=lambda path: (shard_step(path.name), path.name)):
            place = start + shard_step(path.name)
            with open_shard(path, [*_COLUMNS, *LONG_COLUMNS]) as shard:
                table = shard.read(columns=_COLUMNS, use_threads=False)
                totals.shards.append(PoolShard(path, number, shard_step(path.name), place, _long_bytes(shard)))
            if not len(table):
                continue
            problems, success = _numbered(table, totals.index), _flags(table)
            rollouts, successes = (np.bincount(problems, weights, len(totals.index)) for weights in (None, success))
            _add(totals.rollouts, number, rollouts)
            _add(totals.successes, number, successes)
            ever, now = (np.pad(mask, (0, len(totals.index) - len(mask))) for mask in (ever, now))
            visited = rollouts > 0
            now[visited] = successes[visited] > 0
            ever |= now
            totals.coverage.append((place, len(totals.index), int(ever.sum()), int(now.sum())))
            lengths = table["length"].to_numpy()
            for kind in (True, False):
                if (mask := success == kind).any():
                    totals.lengths[kind].setdefault(number, []).append((place, float(lengths[mask].mean())))
            after = max(after, place)
    return totals


def _numbered(table: pa.Table, index: dict[str, int]) -> np.ndarray:
    """The number of each row's problem; new problems get the next numbers."""
    ids = table["problem_id"].combine_chunks().dictionary_encode()
    numbers = np.array([index.setdefault(name, len(index)) for name in ids.dictionary.to_pylist()], dtype=np.int64)
    return numbers[ids.indices.to_numpy()]


def _flags(table: pa.Table) -> np.ndarray:
    return table["success"].combine_chunks().to_numpy(zero_copy_only=False)


def _add(by_round: dict[int, np.ndarray], number: int, counts: np.ndarray) -> None:
    known = by_round.get(number, np.zeros(0, dtype=np.int64))
    total = counts.astype(np.int64)
    total[: len(known)] += known
    by_round[number] = total


def _long_bytes(shard: pq.ParquetFile) -> int:
    """Size of the columns of texts and tokens in memory, as the footer has it."""
    leaves = [place for place in range(shard.metadata.num_columns) if _leaf(shard, place) in LONG_COLUMNS]
    return sum(
        shard.metadata.row_group(group).column(place).total_uncompressed_size
        for group in range(shard.num_row_groups)
        for place in leaves
    )


def _leaf(shard: pq.ParquetFile, place: int) -> str:
    """The column of the table that a leaf of the file belongs to."""
    return str(shard.schema.column(place).path).partition(".")[0]
