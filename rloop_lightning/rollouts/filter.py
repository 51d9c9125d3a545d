"""From the rollout pool to the expert set: the successes on the hard problems (RLoop, arXiv 2511.04285).

    stats = build_expert_set(pool, run / "round-0" / "expert.parquet", FilterConfig(), seed=0)
    for rollout in read_expert_set(run / "round-0" / "expert.parquet"): ...

Two passes over the shards, in memory that does not grow with the pool: the first counts every problem's rollouts and
successes, the second keeps successes of the problems that pass. The set depends on what is in the pool and on the seed,
not on the order or the number of the shards.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.rollouts.pool import LOGPROBS, POOL_SCHEMA, ROW_GROUP_ROWS, TOKEN_IDS, RolloutPool, list_array
from rloop_lightning.system.fields import LeftOpenUnitInterval, NonNegativeInt, check_fields
from rloop_lightning.system.files import atomic_path

EXPERT_SCHEMA = pa.schema(
    [
        pa.field(name, type_, nullable=False)
        for name, type_ in {
            "problem_id": pa.string(),
            "completion_ids": TOKEN_IDS,
            "sampling_logprobs": LOGPROBS,
            "reward": pa.float64(),
            "rollout_step": pa.int32(),  # the first that it was sampled in
            "text": pa.string(),
            "copies": pa.int32(),  # how often it was sampled in the whole exploration
        }.items()
    ]
)
_COUNTS_SCHEMA = pa.schema([("problem_id", pa.string()), ("rollouts", pa.int64()), ("successes", pa.int64())])
_ROW_COLUMNS = EXPERT_SCHEMA.names[:-1]
_SUCCESS_COLUMN = POOL_SCHEMA.get_field_index("success")

# Rows that the first pass holds before it counts them: about 50 MB.
_COUNT_EVERY_ROWS = 1 << 20


@dataclass(frozen=True)
class FilterConfig:
    """What the expert set takes from the pool.

    Args:
        enabled: take the hard problems only; false takes the successes of every problem, the ablation without the
            hard-problem filter (duplicates and the cap per problem are still dealt with as below).
        max_success_rate: a problem is hard if 0 < success rate < this, over its rollouts of the whole exploration
            (fraction; 0.10 in the paper).
        max_per_problem: most rollouts that one problem gives, drawn at random, so that few problems don't dominate;
            0 is no limit.
        deduplicate: keep one of the rollouts of a problem whose completions are the same tokens, the earliest.
    """

    enabled: bool = True
    max_success_rate: LeftOpenUnitInterval = 0.10
    max_per_problem: NonNegativeInt = 8
    deduplicate: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "--filter")


@dataclass(frozen=True)
class ExpertStats:
    """What the filter saw and did. `hard_successes` = `kept` + `duplicates` + `over_cap`.

    Args:
        problems_seen: problems in the pool.
        rollouts_seen: rollouts in the pool.
        successes: rollouts in the pool that are successes.
        hard_problems: problems that passed; with `enabled` false, those with a success.
        hard_successes: successes of those problems.
        kept: rollouts in the expert set.
        duplicates: further copies of the rollouts in the expert set.
        over_cap: successes of those problems, copies included, that the cap per problem left out.
    """

    problems_seen: int
    rollouts_seen: int
    successes: int
    hard_problems: int
    hard_successes: int
    kept: int
    duplicates: int
    over_cap: int

    def metrics(self) -> dict[str, float]:
        """The counts under their metric names."""
        return {
            "pool/problems": self.problems_seen,
            "pool/rollouts": self.rollouts_seen,
            "pool/successes": self.successes,
            "expert/hard_problems": self.hard_problems,
            "expert/hard_successes": self.hard_successes,
            "expert/rollouts": self.kept,
            "expert/duplicates": self.duplicates,
            "expert/over_cap": self.over_cap,
        }


@dataclass(frozen=True)
class ExpertRollout:
    """One completion of the expert set."""

    problem_id: str
    completion_ids: np.ndarray  # [T] int64, the stop token included
    sampling_logprobs: np.ndarray  # [T] float32, nats
    reward: float


def build_expert_set(pool: RolloutPool, out: Path, config: FilterConfig, seed: int) -> ExpertStats:
    """Write the pool's expert set to `out`, whole or not at all; an empty one is a file too.

    Rows come sorted by problem id. The same rollouts, config and seed give the same bytes. Memory grows with the
    number of problems and of rows kept, not with the pool.

    Args:
        pool: every rollout of a round's exploration.
        out: the Parquet file.
        config: what to take.
        seed: of the draw where a problem has more successes than `config.max_per_problem`.
    """
    counts = _count(pool)
    successes = counts["successes"].to_numpy()
    # The quotient is the double nearest to the rate, and so is a literal such as 0.10: 1 of 10 is not below it.
    hard = (successes > 0) & (successes / counts["rollouts"].to_numpy() < config.max_success_rate)
    taken = hard if config.enabled else successes > 0
    expert = {
        problem_id: _ProblemDraw(config.max_per_problem)
        for problem_id in sorted(counts["problem_id"].filter(pa.array(taken)).to_pylist())
    }
    key = str(seed).encode()
    for row in _successes(pool, expert.keys()):
        expert[row.problem_id].offer(row.digest(key, deduplicate=config.deduplicate), row, config.deduplicate)

    drawn = [entry for draw in expert.values() for entry in draw.sorted()]
    _write(out, drawn)
    hard_successes = int(successes[taken].sum())
    duplicates = sum(copies for _, copies in drawn) - len(drawn)
    return ExpertStats(
        problems_seen=len(counts),
        rollouts_seen=int(counts["rollouts"].to_numpy().sum()),
        successes=int(successes.sum()),
        hard_problems=len(expert),
        hard_successes=hard_successes,
        kept=len(drawn),
        duplicates=duplicates,
        over_cap=hard_successes - len(drawn) - duplicates,
    )


def read_expert_set(path: Path) -> list[ExpertRollout]:
    """The expert set, in the file's order."""
    table = pq.read_table(path, columns=["problem_id", "completion_ids", "sampling_logprobs", "reward"])
    return [
        ExpertRollout(problem_id, completion_ids.astype(np.int64), sampling_logprobs, reward)
        for batch in table.to_batches()
        for problem_id, completion_ids, sampling_logprobs, reward in zip(
            batch["problem_id"].to_pylist(),
            _list_rows(batch["completion_ids"]),
            _list_rows(batch["sampling_logprobs"]),
            batch["reward"].to_pylist(),
            strict=True,
        )
    ]


@dataclass(frozen=True)
class _Row:
    """A success of a problem that is taken. Arrays are bytes, so that a row holds on to nothing but itself."""

    problem_id: str
    completion_ids: bytes  # int32
    sampling_logprobs: bytes  # float32
    reward: float
    rollout_step: int
    text: str

    def digest(self, key: bytes, *, deduplicate: bool) -> int:
        """Where the row stands in the problem's draw: pseudo-random, by the seed and what the row holds."""
        content = hashlib.blake2b(self.completion_ids, key=key, digest_size=16)
        content.update(self.problem_id.encode())
        if not deduplicate:  # else copies would stand together, and be drawn together
            content.update(f"{self.rollout_step} {self.reward!r}".encode() + self.sampling_logprobs)
        return int.from_bytes(content.digest(), "big")

    def order(self) -> tuple[int, bytes, float]:
        """Which of several copies is kept: the least."""
        return self.rollout_step, self.sampling_logprobs, self.reward


class _ProblemDraw:
    """The `limit` rows of least digest among all that are offered (0: all), whatever their order."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: dict[tuple[int, int], tuple[_Row, int]] = {}  # (digest, serial) -> row, copies
        self._largest: list[tuple[int, int]] = []  # heap of the negated keys
        self._serial = itertools.count(1)

    def offer(self, digest: int, row: _Row, deduplicate: bool) -> None:
        key = (digest, 0 if deduplicate else next(self._serial))
        if key in self._rows:
            # Every copy of a row that stays to the end passes here: its digest never was too large.
            held, copies = self._rows[key]
            self._rows[key] = (min(held, row, key=_Row.order), copies + 1)
            return
        negated = (-key[0], -key[1])
        if self._limit == 0 or len(self._rows) < self._limit:
            heapq.heappush(self._largest, negated)
        elif negated > self._largest[0]:
            dropped = heapq.heapreplace(self._largest, negated)
            del self._rows[-dropped[0], -dropped[1]]
        else:
            return
        self._rows[key] = (row, 1)

    def sorted(self) -> list[tuple[_Row, int]]:
        """Rows and how often each was offered, by digest."""
        return [entry for _, entry in sorted(self._rows.items())]


def _count(pool: RolloutPool) -> pa.Table:
    """Every problem's `rollouts` and `successes`, in no particular order."""
    counts = _COUNTS_SCHEMA.empty_table()
    pending: list[pa.Table] = []
    rows = 0
    for path in pool.shards():
        with _open(path) as shard:
            pending.append(shard.read(columns=["problem_id", "success"], use_threads=False))
        rows += len(pending[-1])
        if rows >= _COUNT_EVERY_ROWS:
            counts, pending, rows = _add_counts(counts, pending), [], 0
    return _add_counts(counts, pending) if pending else counts


def _add_counts(counts: pa.Table, rollouts: list[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(rollouts).group_by("problem_id").aggregate([("success", "count"), ("success", "sum")])
    more = grouped.select(["problem_id", "success_count", "success_sum"]).rename_columns(_COUNTS_SCHEMA.names)
    both = pa.concat_tables([counts, more.cast(_COUNTS_SCHEMA)]).group_by("problem_id")
    summed = both.aggregate([("rollouts", "sum"), ("successes", "sum")])
    return summed.select(["problem_id", "rollouts_sum", "successes_sum"]).rename_columns(_COUNTS_SCHEMA.names)


def _successes(pool: RolloutPool, problems: Container[str]) -> Iterator[_Row]:
    """The successes of `problems`. Tokens are decoded only of row groups that hold one."""
    for path in pool.shards():
        with _open(path) as shard:
            for group in range(shard.num_row_groups):
                statistics = shard.metadata.row_group(group).column(_SUCCESS_COLUMN).statistics
                if statistics is not None and not statistics.max:
                    continue
                head = shard.read_row_group(group, columns=["problem_id", "success"], use_threads=False)
                keep = _wanted(head, problems)
                if keep.any():
                    rows = shard.read_row_group(group, columns=_ROW_COLUMNS, use_threads=False)
                    yield from _rows(rows.filter(pa.array(keep)))


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    # Opened by path, a file takes twice the time; so does a small one with `pre_buffer`, which is for remote files.
    with pa.OSFile(str(path)) as file:
        yield pq.ParquetFile(file, pre_buffer=False)


def _wanted(head: pa.Table, problems: Container[str]) -> np.ndarray:
    """Which rows are successes of `problems`: one look-up for each problem that occurs, not for each row."""
    success = head["success"].combine_chunks().to_numpy(zero_copy_only=False)
    if not success.any():
        return success
    ids = head["problem_id"].combine_chunks().dictionary_encode()
    wanted = np.array([problem_id in problems for problem_id in ids.dictionary.to_pylist()], dtype=bool)
    return success & wanted[ids.indices.to_numpy()]


def _rows(table: pa.Table) -> Iterator[_Row]:
    for batch in table.to_batches():
        columns = [
            batch["problem_id"].to_pylist(),
            [ids.tobytes() for ids in _list_rows(batch["completion_ids"])],
            [logprobs.tobytes() for logprobs in _list_rows(batch["sampling_logprobs"])],
            batch["reward"].to_pylist(),
            batch["rollout_step"].to_pylist(),
            batch["text"].to_pylist(),
        ]
        yield from itertools.starmap(_Row, zip(*columns, strict=True))


def _list_rows(column: pa.ListArray) -> list[np.ndarray]:
    """The rows of a list column, as views."""
    offsets = column.offsets.to_numpy().tolist()
    values = column.values.to_numpy()
    return [values[start:end] for start, end in itertools.pairwise(offsets)]


def _write(out: Path, drawn: list[tuple[_Row, int]]) -> None:
    with (
        atomic_path(out) as partial,
        pq.ParquetWriter(partial, EXPERT_SCHEMA, compression="zstd") as writer,
    ):
        # A piece at a time, as a second copy of all rows might not fit beside the first.
        for start in range(0, len(drawn), ROW_GROUP_ROWS):
            writer.write_table(_table(drawn[start : start + ROW_GROUP_ROWS]))


def _table(drawn: list[tuple[_Row, int]]) -> pa.Table:
    rows = [row for row, _ in drawn]
    return pa.Table.from_arrays(
        [
            pa.array([row.problem_id for row in rows], pa.string()),
            list_array([np.frombuffer(row.completion_ids, np.int32) for row in rows], TOKEN_IDS),
            list_array([np.frombuffer(row.sampling_logprobs, np.float32) for row in rows], LOGPROBS),
            pa.array([row.reward for row in rows], pa.float64()),
            pa.array([row.rollout_step for row in rows], pa.int32()),
            pa.array([row.text for row in rows], pa.string()),
            pa.array([copies for _, copies in drawn], pa.int32()),
        ],
        schema=EXPERT_SCHEMA,
    )
