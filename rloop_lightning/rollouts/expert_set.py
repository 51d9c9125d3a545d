"""The file of an expert set, which consolidation trains on: one row per rollout, sorted by problem.

write_expert_set(run / "round-0" / "expert.parquet", drawn)
for rollout in read_expert_set(run / "round-0" / "expert.parquet"): ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.rollouts.pool import LOGPROBS, ROW_GROUP_ROWS, TOKEN_IDS, list_array, list_rows
from rloop_lightning.rollouts.pool_scan import Success
from rloop_lightning.system.files import atomic_path
from rloop_lightning.types import FinishReason

EXPERT_SCHEMA = pa.schema(
    [
        pa.field(name, type_, nullable=False)
        for name, type_ in {
            "problem_id": pa.string(),
            "completion_ids": TOKEN_IDS,
            "sampling_logprobs": LOGPROBS,
            "reward": pa.float64(),
            "finish_reason": pa.dictionary(pa.int8(), pa.string()),
            "rollout_step": pa.int32(),  # first step in which it was sampled
            "text": pa.string(),
            "copies": pa.int32(),  # number of times that it was sampled in the exploration
        }.items()
    ]
)


@dataclass(frozen=True)
class ExpertRollout:
    """One completion of the expert set."""

    problem_id: str
    completion_ids: np.ndarray  # [T] int64, including the stop token
    sampling_logprobs: np.ndarray  # [T] float32, nats
    reward: float
    finish_reason: FinishReason

    @property
    def key(self) -> tuple[str, bytes]:
        """Equal for equal completions of a problem."""
        return self.problem_id, self.completion_ids.tobytes()


def write_expert_set(out: Path, drawn: Sequence[tuple[Success, int]]) -> None:
    """Write the file atomically. An empty set is written too.

    Args:
        out: the Parquet file.
        drawn: rollouts, and how often each was sampled.
    """
    with (
        atomic_path(out) as partial,
        pq.ParquetWriter(partial, EXPERT_SCHEMA, compression="zstd") as writer,
    ):
        # In pieces, because a second copy of all rows may not fit into memory.
        for start in range(0, len(drawn), ROW_GROUP_ROWS):
            writer.write_table(_table(drawn[start : start + ROW_GROUP_ROWS]))


def _table(drawn: Sequence[tuple[Success, int]]) -> pa.Table:
    rows = [row for row, _ in drawn]
    return pa.Table.from_arrays(
        [
            pa.array([row.problem_id for row in rows], pa.string()),
            list_array([np.frombuffer(row.completion_ids, np.int32) for row in rows], TOKEN_IDS),
            list_array([np.frombuffer(row.sampling_logprobs, np.float32) for row in rows], LOGPROBS),
            pa.array([row.reward for row in rows], pa.float64()),
            pa.array([row.finish_reason for row in rows], EXPERT_SCHEMA.field("finish_reason").type),
            pa.array([row.rollout_step for row in rows], pa.int32()),
            pa.array([row.text for row in rows], pa.string()),
            pa.array([copies for _, copies in drawn], pa.int32()),
        ],
        schema=EXPERT_SCHEMA,
    )


def read_expert_set(path: Path) -> list[ExpertRollout]:
    """Read the expert set, in the file's order."""
    table = pq.read_table(path, columns=[field.name for field in fields(ExpertRollout)])
    return [
        ExpertRollout(problem_id, completion_ids.astype(np.int64), sampling_logprobs, reward, finish_reason)
        for batch in table.to_batches()
        for problem_id, completion_ids, sampling_logprobs, reward, finish_reason in zip(
            batch["problem_id"].to_pylist(),
            list_rows(batch["completion_ids"]),
            list_rows(batch["sampling_logprobs"]),
            batch["reward"].to_pylist(),
            batch["finish_reason"].to_pylist(),
            strict=True,
        )
    ]


def read_expert_sets(paths: Sequence[Path]) -> list[ExpertRollout]:
    """Read several expert sets in order, without completions of a problem that a set before has too."""
    seen: set[tuple[str, bytes]] = set()
    found: list[ExpertRollout] = []
    for path in paths:
        new = [expert for expert in read_expert_set(path) if expert.key not in seen]
        seen.update(expert.key for expert in new)
        found += new
    return found
