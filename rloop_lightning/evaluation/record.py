"""The record of an evaluation: one Parquet file with a row per problem.

    write_record(run / "round-0" / "evaluations" / "explored.parquet", policy, [evaluation.problems])
    read_record(run / "round-0" / "evaluations" / "explored.parquet")

The key columns `round`, `phase` and `step` are those of the row in metrics.csv. forgetting.py compares two records.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.rollouts.pool import list_array
from rloop_lightning.system.checksums import add_checksum, checksums, keep_checksums
from rloop_lightning.system.files import atomic_path
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Group, SamplingParams

_INSIDE = re.compile(r"step-\d{6,}\.parquet")
_LENGTHS = pa.list_(pa.field("element", pa.int32(), nullable=False))
_RIGHT = pa.list_(pa.field("element", pa.bool_(), nullable=False))

_POLICY_COLUMNS = {
    "policy": pa.string(),  # as in the results table, or "round 1 step 20"
    "round": pa.int32(),  # from 0
    "phase": pa.string(),  # evaluate, or explore for an evaluation inside an exploration
    "step": pa.int32(),  # as in metrics.csv
}
_PROBLEM_COLUMNS = {
    "set": pa.string(),
    "problem_id": pa.string(),
    "samples": pa.int32(),  # rollouts of the problem
    "successes": pa.int32(),
    "truncated": pa.int32(),  # rollouts that ended at the length limit
    "length_mean": pa.float64(),  # tokens
    "lengths": _LENGTHS,  # of each rollout, tokens
    "right": _RIGHT,  # whether each rollout is a success
    "temperature": pa.float64(),
    "top_k": pa.int32(),
    "top_p": pa.float64(),
    "max_new_tokens": pa.int32(),
    "seed": pa.int64(),
}
RECORD_SCHEMA = pa.schema(
    [pa.field(name, type_, nullable=False) for name, type_ in (_POLICY_COLUMNS | _PROBLEM_COLUMNS).items()]
)


@dataclass(frozen=True)
class EvaluatedPolicy:
    """The policy of an evaluation, and the place of the evaluation in metrics.csv.

    Args:
        policy: its name, such as "round 1 explored".
        round: round of the run, from 0.
        phase: `evaluate`, or `explore` for an evaluation inside an exploration.
        step: step in metrics.csv.
    """

    policy: str
    round: int
    phase: str
    step: int


def problem_table(name: str, groups: Sequence[Group], sampling: SamplingParams) -> pa.Table:
    """One row per problem of the set `name`."""
    counts = [len(group.rollouts) for group in groups]
    lengths = [np.array([rollout.length for rollout in group.rollouts]) for group in groups]
    columns = {
        "set": [name] * len(groups),
        "problem_id": [group.problem.id for group in groups],
        "samples": counts,
        "successes": [group.success_count for group in groups],
        "truncated": [sum(rollout.finish_reason == "length" for rollout in group.rollouts) for group in groups],
        "length_mean": [float(one.mean()) for one in lengths],
        "lengths": list_array(lengths, _LENGTHS),
        "right": [[rollout.success for rollout in group.rollouts] for group in groups],
        "temperature": [sampling.temperature] * len(groups),
        "top_k": [sampling.top_k] * len(groups),
        "top_p": [sampling.top_p] * len(groups),
        "max_new_tokens": [sampling.max_new_tokens] * len(groups),
        "seed": [sampling.seed] * len(groups),
    }
    fields = [RECORD_SCHEMA.field(column) for column in columns]
    return pa.table(columns, schema=pa.schema(fields))


def write_record(path: Path, policy: EvaluatedPolicy, sets: Sequence[pa.Table]) -> None:
    """Write the record of a policy's evaluation, atomically, with its checksum. Equal content gives equal bytes.

    Args:
        path: the file.
        policy: the evaluated policy.
        sets: a `problem_table` for each set.
    """
    problems = pa.concat_tables(sets)
    key = {
        name: pa.array([value] * len(problems), RECORD_SCHEMA.field(name).type)
        for name, value in asdict(policy).items()
    }
    columns = [key[name] if name in key else problems[name] for name in RECORD_SCHEMA.names]
    with atomic_path(path) as partial:
        pq.write_table(pa.table(columns, schema=RECORD_SCHEMA), partial, compression="zstd")
    add_checksum(path)


def read_record(path: Path) -> pa.Table:
    """Read the record of an evaluation, in the order of the sets and their problems.

    Raises:
        ValueError: the file is missing, or is not such a record.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is not the record of an evaluation (it is missing)") from None
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not the record of an evaluation ({one_line(str(error), limit=200)})") from error
    if missing := set(RECORD_SCHEMA.names) - set(table.column_names):
        raise ValueError(f"{path} is not the record of an evaluation: it has no column {', '.join(sorted(missing))}")
    return table


def inside_record(folder: Path, step: int) -> Path:
    """The record of the evaluation after rollout step `step` of an exploration.

    Args:
        folder: the folder of the round's records.
        step: rollout step, from 1.
    """
    return folder / f"step-{step:06d}.parquet"


def inside_records(folder: Path) -> list[Path]:
    """The records of evaluations inside an exploration, in order. Files of other names are not a run's.

    A record that has a checksum but no file is among them.
    """
    names = {*(path.name for path in folder.glob("*.parquet")), *checksums(folder)}
    return [folder / name for name in sorted(names) if _INSIDE.fullmatch(name)]


def drop_inside_records(folder: Path, after: int) -> None:
    """Remove the records of evaluations after later rollout steps than `after`, which a resumed exploration repeats."""
    last, dropped = inside_record(folder, after).name, set()
    for path in inside_records(folder):
        if path.name > last:
            path.unlink(missing_ok=True)
            dropped.add(path.name)
    if dropped:
        keep_checksums(folder, checksums(folder).keys() - dropped)
