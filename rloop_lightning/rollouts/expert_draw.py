"""Draws an expert set's rollouts from shards of a pool, and merges the draws of several parts of it.

    rules = DrawRules(seed=0, limit=8, deduplicate=True, finished_only=True)
    drawn = Drawn(rules)
    drawn.take(shards, hard_problems)
    for row, copies in drawn.rows(): ...

Which rollouts are drawn depends on their content and the seed. So the draws of parts of a pool, merged in the order of
its shards, keep the rows that one draw of all shards keeps (draw.py).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rloop_lightning.rollouts.draw import ProblemDraws, SizedDraw, content_digest
from rloop_lightning.rollouts.pool import ROW_GROUP_ROWS
from rloop_lightning.rollouts.pool_scan import Success, successes_in

_DIGEST_BYTES = 16
_SCHEMA = pa.schema(
    [
        ("digest", pa.binary(_DIGEST_BYTES)),
        ("copies", pa.int64()),
        ("problem_id", pa.string()),
        ("completion_ids", pa.large_binary()),
        ("sampling_logprobs", pa.large_binary()),
        ("reward", pa.float64()),
        ("finish_reason", pa.string()),
        ("rollout_step", pa.int32()),
        ("text", pa.large_string()),
    ]
)
_TRUNCATED = b"truncated"


@dataclass(frozen=True)
class DrawRules:
    """Which successes are drawn.

    Args:
        seed: of the draw.
        limit: rollouts per problem; 0 is no limit.
        deduplicate: whether of identical completions of a problem the earliest is kept.
        finished_only: leave out truncated successes.
        control_size: draw so many over all problems; None draws from each problem.
    """

    seed: int
    limit: int
    deduplicate: bool
    finished_only: bool
    control_size: int | None = None

    @property
    def key(self) -> bytes:
        """The key of the digests."""
        return ("" if self.control_size is None else "control ").encode() + str(self.seed).encode()

    def draw(self) -> ProblemDraws[Success] | SizedDraw[Success]:
        """A draw by these rules that has no row yet."""
        if self.control_size is None:
            return ProblemDraws(self.limit, self.deduplicate, _order)
        return SizedDraw(self.control_size, self.limit, self.deduplicate, _order)


class Drawn:
    """What is drawn so far.

    Attributes:
        truncated: truncated successes that were left out.
    """

    def __init__(self, rules: DrawRules) -> None:
        self.truncated = 0
        self._rules = rules
        self._draw = rules.draw()

    def take(self, shards: Iterable[Path], problems: Container[str]) -> None:
        """Draw from the successes of `problems` in some shards.

        Raises:
            DamagedError: a file is not a shard of a pool, or damaged; the message names it.
        """
        rules = self._rules
        for row in successes_in(shards, problems):
            if rules.finished_only and row.finish_reason != "stop":
                self.truncated += 1
            else:
                self._draw.offer(row.problem_id, success_digest(row, rules.key, rules.deduplicate), row)

    def rows(self) -> list[tuple[Success, int]]:
        """Rows and the number of their copies, sorted by problem and digest."""
        return [(row, copies) for _, row, copies in self._draw.entries()]

    @property
    def schema(self) -> pa.Schema:
        """The schema of `batches`, with what else is known."""
        return _SCHEMA.with_metadata({_TRUNCATED: str(self.truncated)})

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The draw as Arrow batches, for `merge`."""
        columns: list[list[object]] = [[] for _ in _SCHEMA]
        for digest, row, copies in self._draw.entries():
            values = (
                digest.to_bytes(_DIGEST_BYTES, "big"),
                copies,
                *(getattr(row, name) for name in _SCHEMA.names[2:]),
            )
            for column, value in zip(columns, values, strict=True):
                column.append(value)
            if len(columns[0]) == ROW_GROUP_ROWS:
                yield pa.record_batch(columns, schema=self.schema)
                columns = [[] for _ in _SCHEMA]
        yield pa.record_batch(columns, schema=self.schema)

    def merge(self, reader: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
        """Add the draw of later shards, from its `batches` and `schema`."""
        self.truncated += int(schema.metadata[_TRUNCATED])
        for batch in reader:
            digests, copies, *columns = (batch[name].to_pylist() for name in _SCHEMA.names)
            for digest, count, *values in zip(digests, copies, *columns, strict=True):
                row = Success(**dict(zip(_SCHEMA.names[2:], values, strict=True)))
                self._draw.offer(row.problem_id, int.from_bytes(digest, "big"), row, count)


def success_digest(row: Success, key: bytes, deduplicate: bool) -> int:
    """A row's rank in its problem's draw: pseudo-random, from the seed and the row's content."""
    # Without deduplication, copies would have equal ranks and be drawn together.
    unique = () if deduplicate else (f"{row.rollout_step} {row.reward!r}".encode() + row.sampling_logprobs,)
    return content_digest(key, row.problem_id, row.completion_ids, *unique)


def _order(row: Success) -> tuple[int, bytes, float]:
    """Sort key among copies: the smallest is kept."""
    return row.rollout_step, row.sampling_logprobs, row.reward
