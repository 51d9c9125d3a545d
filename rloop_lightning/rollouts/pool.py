"""The rollout pool: every rollout of a round's exploration, as append-only Parquet shards in one folder.

    pool = RolloutPool(run / "round-0" / "pool")
    pool.write("step-000012", groups, round=0, rollout_step=11, run_id="...")
    pool.shards()  # -> [.../step-000012.parquet]

A shard appears by atomic rename or not at all, so readers never see a partial one. Its checksum is then added to
`_SHA256SUMS` (system/checksums.py). Any Parquet reader can read the pool: `pandas.read_parquet(folder)`. `filter.py`
selects the expert set from it, and `pool_scan.py` reads it for the filter.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.system.checksums import add_checksum, checksums, damaged_files, keep_checksums
from rloop_lightning.system.files import atomic_path

if TYPE_CHECKING:  # it imports torch, which readers of a pool in processes of their own do without
    from rloop_lightning.types import Group, Rollout

TOKEN_IDS = pa.list_(pa.field("element", pa.int32(), nullable=False))
LOGPROBS = pa.list_(pa.field("element", pa.float32(), nullable=False))  # nats

POOL_SCHEMA = pa.schema(
    [
        pa.field(name, type_, nullable=False)  # readers then decode no null masks
        for name, type_ in {
            "round": pa.int32(),
            "rollout_step": pa.int32(),
            "policy_version": pa.int32(),  # rollout steps that the policy had trained on, for its oldest token
            "problem_id": pa.string(),
            "completion_ids": TOKEN_IDS,  # including the stop token
            "text": pa.string(),
            "reward": pa.float64(),
            "success": pa.bool_(),
            "check_fault": pa.dictionary(pa.int8(), pa.string()),  # "", "timeout", "memory" or "crash"
            "finish_reason": pa.dictionary(pa.int8(), pa.string()),
            "length": pa.int32(),  # tokens
            "sampling_logprob_sum": pa.float64(),  # nats
            "sampling_logprobs": LOGPROBS,
            "run_id": pa.string(),
        }.items()
    ]
)

# Columns with repeated values. For logprobs and texts, a dictionary takes more space than it saves.
_DICTIONARIES = [
    "round",
    "rollout_step",
    "policy_version",
    "problem_id",
    "completion_ids.list.element",
    "reward",
    "check_fault",
    "finish_reason",
    "run_id",
]

# A group has few successes up to this fraction. At a success rate of 10 %, 4 % of groups of eight have more.
FEW_SUCCESSES = 0.25

# Bounds a reader's memory: 1024 completions of 8k tokens are 64 MB of token ids and logprobs.
ROW_GROUP_ROWS = 1024
_SHARD = re.compile(r"(step|extra|unused)-(\d{6,})\.parquet")
"""The file name of a shard: of a rollout step, of an extra capture, or of the step that ended the exploration.

Files of other names in the folder are nobody's shards: they are neither read nor removed.
"""
_STEP_KEY = b"rollout_step"
TRUNCATED_KEY = b"sampled_by_top_k_or_top_p"
"""A key in the metadata of a shard whose logprobs are of the tokens that top-k or top-p kept."""


class RolloutPool:
    """The shards of one folder, which the first write creates."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def write(
        self,
        name: str,
        groups: Sequence[Group],
        *,
        round: int,
        rollout_step: int,
        run_id: str,
        policy_version: int | None = None,
    ) -> Path:
        """Write the groups' rollouts as the shard `name`, atomically.

        Writing the same name again replaces the shard, because a resumed run repeats its last steps. Successes have row
        groups of their own, so that the filter never decodes the tokens of a failure. The successes of groups with few
        successes come first, in separate row groups, so that it rarely decodes those of an easy problem. Lone
        surrogates in a text become "?", because Parquet stores UTF-8 only.

        Args:
            name: shard name without suffix: `step-000012`, `extra-000012` or `unused-000012`.
            groups: groups of rollouts that the reward has scored.
            round: round of the run, from 0.
            rollout_step: rollout step within the phase; `drop_after` uses it.
            run_id: id of the run that generated them.
            policy_version: rollout steps that the policy had trained on; default: what each rollout says of the oldest
                of its tokens, or `rollout_step`.

        Raises:
            ValueError: a rollout has no reward yet, or not one logprob per token; or the name is not a shard's.
        """
        path = self.folder / f"{name}.parquet"
        if not _SHARD.fullmatch(f"{name}.parquet"):
            raise ValueError(f"expected a shard name such as step-000012, got {name!r}")
        _check([rollout for group in groups for rollout in group.rollouts])
        tables = [
            rollout_table(
                rows,
                POOL_SCHEMA,
                round=round,
                rollout_step=rollout_step,
                policy_version=policy_version,
                run_id=run_id,
            )
            for rows in _kinds(groups)
            if rows
        ]
        if path.exists():
            keep_checksums(self.folder, {shard.name for shard in self.shards()} - {path.name})
        truncated = any(rollout.kept_counts is not None for group in groups for rollout in group.rollouts)
        write_shard(path, tables, rollout_step=rollout_step, truncated=truncated)
        add_checksum(path)
        return path

    def shards(self) -> list[Path]:
        """The existing shards, sorted by name."""
        return sorted(path for path in self.folder.glob("*.parquet") if _SHARD.fullmatch(path.name))

    def damaged(self, rollout_steps: int | None = None) -> dict[str, str]:
        """Damaged shards and their faults: missing, changed, or without a checksum.

        Args:
            rollout_steps: check the shards of the first `rollout_steps` rollout steps, all of which must exist;
                default: check all shards.
        """
        names = {path.name for path in self.shards()} | set(filter(_SHARD.fullmatch, checksums(self.folder)))
        if rollout_steps is not None:
            names = {name for name in names if shard_step(name) <= rollout_steps}
            names |= {f"step-{step:06d}.parquet" for step in range(1, rollout_steps + 1)}
        return damaged_files(self.folder, sorted(names))

    def drop_after(self, rollout_step: int) -> None:
        """Remove the shards of `rollout_step` and later, and those with an unreadable footer.

        A run that resumes there generates them again.
        """
        for path in self.shards():
            try:
                step = int(pq.read_schema(path).metadata[_STEP_KEY])
            except (pa.ArrowException, OSError, TypeError, KeyError, ValueError):
                step = rollout_step
            if step >= rollout_step:
                path.unlink()
        keep_checksums(self.folder, [path.name for path in self.shards()])


def wrong_columns(schema: pa.Schema, names: Iterable[str]) -> list[str]:
    """The columns that are missing, doubled, or of another type than in a shard, sorted."""
    return sorted(
        name
        for name in names
        if schema.get_field_index(name) < 0 or not schema.field(name).equals(POOL_SCHEMA.field(name))
    )


def shard_step(name: str) -> int:
    """The rollout step, from 1, in a shard's file name; 0 if it is not a shard's."""
    match = _SHARD.fullmatch(name)
    return int(match[2]) if match else 0


def _kinds(groups: Sequence[Group]) -> list[list[Rollout]]:
    """Split into successes of groups with few successes, other successes, and failures."""
    few: list[Rollout] = []
    other: list[Rollout] = []
    failures: list[Rollout] = []
    for group in groups:
        successes = [rollout for rollout in group.rollouts if rollout.success]
        (few if len(successes) <= FEW_SUCCESSES * len(group.rollouts) else other).extend(successes)
        failures.extend(rollout for rollout in group.rollouts if not rollout.success)
    return [few, other, failures]


def write_shard(path: Path, tables: Sequence[pa.Table], *, rollout_step: int, truncated: bool = False) -> None:
    """Write rows of `POOL_SCHEMA` as a shard, atomically. No row group contains rows of two tables.

    `truncated` marks rollouts that were sampled by top-k or top-p: the shard does not store the tokens that were kept.
    """
    schema = POOL_SCHEMA.with_metadata({_STEP_KEY: str(rollout_step), **({TRUNCATED_KEY: "1"} if truncated else {})})
    with (
        atomic_path(path) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=_DICTIONARIES) as writer,
    ):
        for table in tables:
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)


def _check(rollouts: Sequence[Rollout]) -> None:
    for rollout in rollouts:
        if math.isnan(rollout.reward):
            raise ValueError(f"a rollout of problem {rollout.problem_id!r} has no reward; check it before the pool")
        if len(rollout.sampling_logprobs) != rollout.length:
            raise ValueError(
                f"a rollout of problem {rollout.problem_id!r} has {rollout.length} tokens and "
                f"{len(rollout.sampling_logprobs)} sampling logprobs"
            )


def rollout_table(
    rollouts: Sequence[Rollout],
    schema: pa.Schema,
    *,
    round: int = 0,
    rollout_step: int = 0,
    policy_version: int | None = None,
    run_id: str = "",
) -> pa.Table:
    """Rollouts as rows of the pool's schema; see `RolloutPool.write`."""
    rows = len(rollouts)
    lengths = [rollout.length for rollout in rollouts]
    columns = {
        "round": np.full(rows, round, dtype=np.int32),
        "rollout_step": np.full(rows, rollout_step, dtype=np.int32),
        "policy_version": [
            _oldest(one, rollout_step) if policy_version is None else policy_version for one in rollouts
        ],
        "problem_id": [rollout.problem_id for rollout in rollouts],
        "completion_ids": list_array([rollout.completion_ids for rollout in rollouts], TOKEN_IDS),
        "text": [rollout.text.encode(errors="replace").decode() for rollout in rollouts],
        "reward": [float(rollout.reward) for rollout in rollouts],
        "success": [bool(rollout.success) for rollout in rollouts],
        "check_fault": [rollout.check_fault for rollout in rollouts],
        "finish_reason": [rollout.finish_reason for rollout in rollouts],
        "length": lengths,
        "sampling_logprob_sum": [float(r.sampling_logprobs.sum(dtype=np.float64)) for r in rollouts],
        "sampling_logprobs": list_array([rollout.sampling_logprobs for rollout in rollouts], LOGPROBS),
        "run_id": [run_id] * rows,
    }
    return pa.Table.from_arrays(
        [_array(columns[field.name], field.type) for field in schema],
        schema=schema,
    )


def _oldest(rollout: Rollout, default: int) -> int:
    return default if rollout.versions is None else int(rollout.versions.min(initial=default))


def _array(values: object, type_: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, type=type_)


def list_array(rows: Sequence[np.ndarray], type_: pa.ListType) -> pa.ListArray:
    """Arrays of different lengths as one Arrow list column."""
    offsets = np.fromiter(itertools.accumulate(map(len, rows), initial=0), dtype=np.int32, count=len(rows) + 1)
    values = (np.concatenate(rows) if rows else np.empty(0)).astype(type_.value_type.to_pandas_dtype())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=type_)


def list_rows(column: pa.ListArray) -> list[np.ndarray]:
    """The rows of a list column, as views."""
    offsets = column.offsets.to_numpy().tolist()
    values = column.values.to_numpy()
    return [values[start:end] for start, end in itertools.pairwise(offsets)]
