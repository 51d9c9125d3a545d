"""Scans the pool in memory that does not grow with it: counts per problem, and the successes of given problems.

Each scan is one pass over the shards. The first reads two columns. The second decodes tokens only for row groups that
contain a requested success. selection.py scans for an export.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.errors import DamagedError
from rloop_lightning.rollouts.pool import RolloutPool, list_rows, wrong_columns
from rloop_lightning.system.terminal import one_line

_COUNTS_SCHEMA = pa.schema([("problem_id", pa.string()), ("rollouts", pa.int64()), ("successes", pa.int64())])


@dataclass(frozen=True)
class Success:
    """A successful rollout. Arrays are bytes, so that it keeps no larger buffer alive."""

    problem_id: str
    completion_ids: bytes  # int32
    sampling_logprobs: bytes  # float32
    reward: float
    finish_reason: str
    rollout_step: int
    text: str


_COUNTED = ["problem_id", "success"]
_SUCCESS_FIELDS = [field.name for field in fields(Success)]
_READ = {*_COUNTED, *_SUCCESS_FIELDS}


def count_rollouts(*pools: RolloutPool, rows_at_once: int = 1 << 20) -> pa.Table:
    """Count every problem's `rollouts` and `successes`, in no particular order.

    Args:
        pools: the pools, whose counts are added.
        rows_at_once: rows that are buffered before they are counted; a million takes about 50 MB.

    Raises:
        DamagedError: a file is not a shard of a pool, or damaged; the message names it.
    """
    return counts_in(itertools.chain.from_iterable(pool.shards() for pool in pools), rows_at_once=rows_at_once)


def counts_in(shards: Iterable[Path], *, rows_at_once: int = 1 << 20) -> pa.Table:
    """The same for some shards."""
    counts = _COUNTS_SCHEMA.empty_table()
    pending: list[pa.Table] = []
    rows = 0
    for path in shards:
        with open_shard(path, _READ) as shard:
            pending.append(shard.read(columns=_COUNTED, use_threads=False))
        rows += len(pending[-1])
        # At least as many rows as there are problems, or the time would grow with rollouts times problems.
        if rows >= max(rows_at_once, len(counts)):
            counts, pending, rows = _add_counts(counts, pending), [], 0
    return _add_counts(counts, pending) if pending else counts


def _add_counts(counts: pa.Table, rollouts: list[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(rollouts).group_by("problem_id").aggregate([("success", "count"), ("success", "sum")])
    more = grouped.select(["problem_id", "success_count", "success_sum"]).rename_columns(_COUNTS_SCHEMA.names)
    return sum_counts([counts, more.cast(_COUNTS_SCHEMA)])


def sum_counts(tables: Sequence[pa.Table]) -> pa.Table:
    """The sum of counts of several parts."""
    both = pa.concat_tables(tables).group_by("problem_id")
    summed = both.aggregate([("rollouts", "sum"), ("successes", "sum")])
    return summed.select(["problem_id", "rollouts_sum", "successes_sum"]).rename_columns(_COUNTS_SCHEMA.names)


def successes_of(pool: RolloutPool, problems: Container[str]) -> Iterator[Success]:
    """Yield the successes of `problems`. Tokens are decoded only for row groups that contain one.

    Raises:
        DamagedError: a file is not a shard of a pool, or damaged; the message names it.
    """
    return successes_in(pool.shards(), problems)


def successes_in(shards: Iterable[Path], problems: Container[str]) -> Iterator[Success]:
    """The same for some shards."""
    for path in shards:
        with open_shard(path, _READ) as shard:
            for group in range(shard.num_row_groups):
                if not may_hold_success(shard, group):
                    continue
                head = shard.read_row_group(group, columns=_COUNTED, use_threads=False)
                keep = _wanted(head, problems)
                if keep.any():
                    rows = shard.read_row_group(group, columns=_SUCCESS_FIELDS, use_threads=False)
                    yield from _successes(rows.filter(pa.array(keep)))


@contextmanager
def open_shard(path: Path, columns: Collection[str]) -> Iterator[pq.ParquetFile]:
    """Open a shard, or another file with columns of a shard.

    Raises:
        DamagedError: it is not readable, here or in the block, or one of `columns` is not what a shard has.
    """
    try:
        # Opening by path takes twice the time, and so does `pre_buffer`, which is meant for remote files.
        with pa.OSFile(str(path)) as file:
            shard = pq.ParquetFile(file, pre_buffer=False)
            if wrong := wrong_columns(shard.schema_arrow, columns):
                raise ValueError(f"look at its columns {', '.join(wrong)}")
            yield shard
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DamagedError(f"{path} is not a shard of a rollout pool, or damaged ({one_line(str(error))})") from error


def may_hold_success(shard: pq.ParquetFile, group: int) -> bool:
    """Whether a row group of a shard may contain a success, by its statistics."""
    column = shard.schema.names.index("success")  # those are the leaves, as the columns of a row group are
    statistics = shard.metadata.row_group(group).column(column).statistics
    return statistics is None or bool(statistics.max)


def _wanted(head: pa.Table, problems: Container[str]) -> np.ndarray:
    """Mask of the rows that are successes of `problems`, with one look-up per problem instead of per row."""
    success = head["success"].combine_chunks().to_numpy(zero_copy_only=False)
    if not success.any():
        return success
    ids = head["problem_id"].combine_chunks().dictionary_encode()
    wanted = np.array([problem_id in problems for problem_id in ids.dictionary.to_pylist()], dtype=bool)
    return success & wanted[ids.indices.to_numpy()]


def _successes(table: pa.Table) -> Iterator[Success]:
    for batch in table.to_batches():
        columns = [
            batch["problem_id"].to_pylist(),
            [ids.tobytes() for ids in list_rows(batch["completion_ids"])],
            [logprobs.tobytes() for logprobs in list_rows(batch["sampling_logprobs"])],
            batch["reward"].to_pylist(),
            batch["finish_reason"].to_pylist(),
            batch["rollout_step"].to_pylist(),
            batch["text"].to_pylist(),
        ]
        yield from itertools.starmap(Success, zip(*columns, strict=True))
