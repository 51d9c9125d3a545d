"""Selects rollouts from pools and expert sets, in memory that does not grow with the text of the rollouts.

    shards = pool_shards(RolloutPool(run / "round-0" / "pool"), round=0)
    for table in SelectedRollouts(shards, rates, Selection(finish_reason="stop", max_per_problem=4)).tables(): ...

The rollouts come in the order in which they were sampled. Without `max_per_problem` it takes one pass over the files
and, to find copies, about 100 bytes for each rollout that is kept. With it, a first pass draws the rollouts by the
digests of their tokens; memory then grows with the number of rollouts that are drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rloop_lightning.rollouts.draw import ProblemDraw, content_digest
from rloop_lightning.rollouts.pool import RolloutPool, list_rows, shard_step
from rloop_lightning.rollouts.pool_scan import may_hold_success, open_shard
from rloop_lightning.system.fields import ClosedUnitInterval, NonNegativeInt, Seed

_HEAD = ["problem_id", "reward", "finish_reason", "rollout_step"]
_BODY = ["completion_ids", "text"]

SELECTED_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("completion_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("reward", pa.float64()),
        ("success", pa.bool_()),
        ("finish_reason", pa.string()),
        ("length", pa.int32()),  # tokens
        ("round", pa.int32()),
        ("rollout_step", pa.int32()),
        ("success_rate", pa.float64()),  # of the problem, in its round
    ]
)


@dataclass(frozen=True)
class Selection:
    """Which rollouts are taken.

    Args:
        min_rollout_step: from this rollout step of an exploration on, counted from 0 as in the pool.
        max_rollout_step: up to this rollout step.
        min_success_rate: of problems with at least this success rate in the round (fraction).
        max_success_rate: of problems with a lower success rate than this in the round (fraction), as
            --filter.max_success_rate.
        min_reward: with at least this reward.
        max_reward: with at most this reward.
        min_length: of at least so many tokens.
        max_length: of at most so many tokens.
        finish_reason: `stop`, completions that ended, or `length`, those that were truncated at the limit.
        deduplicate: of a problem's rollouts with identical completion tokens, take the earliest.
        max_per_problem: maximum number of rollouts per problem, drawn at random; 0 is no limit.
        seed: seed of this draw.
    """

    min_rollout_step: NonNegativeInt | None = None
    max_rollout_step: NonNegativeInt | None = None
    min_success_rate: ClosedUnitInterval | None = None
    max_success_rate: ClosedUnitInterval | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    min_length: NonNegativeInt | None = None
    max_length: NonNegativeInt | None = None
    finish_reason: Literal["stop", "length"] | None = None
    deduplicate: bool = True
    max_per_problem: NonNegativeInt = 0
    seed: Seed = 0

    def __post_init__(self) -> None:
        wrong = [
            f"--min_{name} {low:g} exceeds --max_{name} {high:g}"
            for name in ("rollout_step", "success_rate", "reward", "length")
            if (low := getattr(self, f"min_{name}")) is not None
            and (high := getattr(self, f"max_{name}")) is not None
            and low > high
        ]
        if wrong:
            raise ValueError("\n".join(wrong))


@dataclass(frozen=True)
class Shard:
    """A file of rollouts.

    Args:
        path: a shard of a pool, or an expert set.
        round: the round of its rollouts.
        of_pool: whether it is a shard of a pool, which has failures too. An expert set has successes only.
    """

    path: Path
    round: int
    of_pool: bool = True

    @property
    def columns(self) -> list[str]:
        """The columns that are looked at before tokens and texts are read."""
        return [*_HEAD, "success"] if self.of_pool else _HEAD


def pool_shards(pool: RolloutPool, round: int) -> list[Shard]:
    """The shards of a pool in the order in which they were written."""
    paths = sorted(pool.shards(), key=lambda path: (shard_step(path.name), not path.name.startswith("step-")))
    return [Shard(path, round) for path in paths]


@dataclass(frozen=True)
class _Part:
    """The rows of one row group that pass the filters."""

    shard: Shard
    file: pq.ParquetFile
    group: int
    head: pa.Table
    rows: np.ndarray  # [n] row numbers
    rates: np.ndarray  # [rows of the group]
    ids: pa.ListArray  # [rows of the group] completion tokens
    digests: Sequence[int]  # [n]

    def table(self, rows: np.ndarray) -> pa.Table:
        take = pa.array(rows)
        head = self.head.take(take)
        text = self.file.read_row_group(self.group, columns=["text"], use_threads=False)["text"].take(take)
        ids = self.ids.take(take)
        success = head["success"] if self.shard.of_pool else pa.array(np.ones(len(rows), bool))
        columns = {
            "problem_id": head["problem_id"],
            "completion_ids": ids,
            "text": text,
            "reward": head["reward"],
            "success": success,
            "finish_reason": head["finish_reason"],
            "length": pc.list_value_length(ids),
            "round": pa.array(np.full(len(rows), self.shard.round, np.int32)),
            "rollout_step": head["rollout_step"],
            "success_rate": pa.array(self.rates[rows]),
        }
        return pa.table([columns[field.name].cast(field.type) for field in SELECTED_SCHEMA], schema=SELECTED_SCHEMA)


@dataclass(frozen=True)
class SelectedRollouts:
    """The selected rollouts of some files.

    Args:
        shards: the files, oldest first.
        rates: by round, the success rate of each problem.
        selection: what to take.
        successes_only: leave out failures.
    """

    shards: Sequence[Shard]
    rates: Mapping[int, Mapping[str, float]]
    selection: Selection
    successes_only: bool = False

    def tables(self, copies: list[int] | None = None) -> Iterator[pa.Table]:
        """Tables of `SELECTED_SCHEMA`, each with at most a row group's rows.

        Args:
            copies: takes, for each row group, how many rows are left out as copies of others.

        Raises:
            DamagedError: a file is not what it should be; the message names it.
        """
        seen: set[int] = set()
        for part in self._parts():
            rows = part.rows
            if part.digests:
                drawn = [self._drawn is None or digest in self._drawn for digest in part.digests]
                kept = []
                for row, digest, is_drawn in zip(rows.tolist(), part.digests, drawn, strict=True):
                    if is_drawn and digest not in seen:
                        seen.add(digest)
                        kept.append(row)
                if copies is not None:
                    copies.append(sum(drawn) - len(kept))
                rows = np.array(kept, dtype=np.int64)
            if len(rows):
                yield part.table(rows)

    @cached_property
    def _drawn(self) -> set[int] | None:
        """The digests of the rollouts that are drawn from problems with too many; None without a limit."""
        if not self.selection.max_per_problem:
            return None
        draws: dict[str, ProblemDraw[None]] = defaultdict(
            lambda: ProblemDraw(self.selection.max_per_problem, True, lambda row: 0)
        )
        for part in self._parts():
            names = part.head["problem_id"].take(pa.array(part.rows)).to_pylist()
            for name, digest in zip(names, part.digests, strict=True):
                draws[name].offer(digest, None)
        return {digest for draw in draws.values() for digest, _ in draw.ranks()}

    def _parts(self) -> Iterator[_Part]:
        for shard in self.shards:
            with open_shard(shard.path, [*shard.columns, *_BODY]) as file:
                for group in range(file.num_row_groups):
                    if self.successes_only and shard.of_pool and not may_hold_success(file, group):
                        continue
                    head = file.read_row_group(group, columns=shard.columns, use_threads=False)
                    rates = self._rates(shard, head)
                    passed = self._passed(shard, head, rates)
                    if not passed.any():
                        continue
                    ids = file.read_row_group(group, columns=["completion_ids"], use_threads=False)["completion_ids"]
                    ids = ids.combine_chunks()
                    lengths = pc.list_value_length(ids).to_numpy()
                    rows = np.flatnonzero(
                        passed & _within(lengths, self.selection.min_length, self.selection.max_length)
                    )
                    if len(rows):
                        digests = self._digests(shard, group, head, ids, rows)
                        yield _Part(shard, file, group, head, rows, rates, ids, digests)

    def _rates(self, shard: Shard, head: pa.Table) -> np.ndarray:
        """Success rate of each row's problem; NaN if its round's pool has none of it."""
        ids = head["problem_id"].combine_chunks().dictionary_encode()
        of_round = self.rates.get(shard.round, {})
        rates = np.array([of_round.get(name, np.nan) for name in ids.dictionary.to_pylist()], dtype=np.float64)
        return rates[ids.indices.to_numpy()]

    def _passed(self, shard: Shard, head: pa.Table, rates: np.ndarray) -> np.ndarray:
        """Mask of the rows that pass all filters but those on tokens."""
        chosen = self.selection
        passed = _within(head["rollout_step"].to_numpy(), chosen.min_rollout_step, chosen.max_rollout_step)
        passed &= _within(head["reward"].to_numpy(), chosen.min_reward, chosen.max_reward)
        passed &= _within(rates, chosen.min_success_rate, None)
        if chosen.max_success_rate is not None:
            passed &= rates < chosen.max_success_rate
        if chosen.finish_reason is not None:
            passed &= np.array(head["finish_reason"].to_pylist()) == chosen.finish_reason
        if self.successes_only and shard.of_pool:
            passed &= head["success"].combine_chunks().to_numpy(zero_copy_only=False)
        return passed

    def _digests(self, shard: Shard, group: int, head: pa.Table, ids: pa.ListArray, rows: np.ndarray) -> list[int]:
        """A digest of each row: equal for copies, unless they are to be kept."""
        if not self.selection.max_per_problem and not self.selection.deduplicate:
            return []
        key = str(self.selection.seed).encode()
        names, tokens = head["problem_id"].to_pylist(), list_rows(ids)
        place = (shard.round, shard.path.name, group)
        return [
            content_digest(
                key, names[row], tokens[row].tobytes(), *([] if self.selection.deduplicate else [(*place, row)])
            )
            for row in rows.tolist()
        ]


def _within(values: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    passed = np.ones(len(values), dtype=bool)
    if low is not None:
        passed &= values >= low
    if high is not None:
        passed &= values <= high
    return passed
