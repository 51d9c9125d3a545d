"""Random changes of a shard: every reader reads it, or names it. RLOOP_FUZZ sets how many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import make_rollout
from mutating import fault_of, mutated_bytes, seeds

from rloop_lightning.errors import RunFault
from rloop_lightning.rollouts.expert_set import read_expert_set
from rloop_lightning.rollouts.filter import FilterConfig, build_expert_set
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.pool_scan import count_rollouts
from rloop_lightning.rollouts.replay_buffer import ReplayBuffer, shard_fault
from rloop_lightning.system.checksums import write_checksums
from rloop_lightning.types import Group, Problem

SHARD = "step-000001.parquet"
TYPES = (pa.int8(), pa.int64(), pa.float32(), pa.string(), pa.bool_(), pa.large_string(), pa.list_(pa.int64()))


@pytest.fixture
def pool(tmp_path: Path) -> RolloutPool:
    pool = RolloutPool(tmp_path / "pool")
    for step in (1, 2):
        groups = [
            Group(Problem(name, "", ""), tuple(make_rollout(name, (i, 5, 1), reward=float(i == 3)) for i in range(12)))
            for name in ("a", "b", "ü")
        ]
        pool.write(f"step-{step:06d}", groups, round=0, rollout_step=step - 1, run_id="run")
    return pool


def change_columns(path: Path, random: Random) -> None:
    """A table that Parquet can hold, but that is no shard."""
    table = pq.read_table(path)
    number = random.randrange(table.num_columns)
    name = table.column_names[number]
    match random.choice(["drop", "rename", "type", "nulls", "order", "rows", "double"]):
        case "drop":
            table = table.drop_columns(name)
        case "rename":
            table = table.rename_columns([other + "_" * (other == name) for other in table.column_names])
        case "type":
            type_ = random.choice(TYPES)
            try:
                column = table[name].cast(type_)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                column = pa.nulls(len(table), type_)
            table = table.set_column(number, name, column)
        case "nulls":
            keep = pa.array([random.random() < 0.5 or None for _ in range(len(table))])
            values = table[name].to_pylist()
            table = table.set_column(
                number, name, pa.array([v if k else None for v, k in zip(values, keep.to_pylist(), strict=True)],
                                       table[name].type)
            )  # fmt: skip
        case "order":
            table = table.select(random.sample(table.column_names, table.num_columns))
        case "rows":
            table = table.slice(0, random.choice([0, 1]))
        case _:
            table = table.append_column(name, table[name])
    pq.write_table(table, path)


def readers(pool: RolloutPool, out: Path) -> dict[str, Callable[[], object]]:
    return {
        "count": lambda: count_rollouts(pool),
        "filter": lambda: build_expert_set(pool, out, FilterConfig(), seed=0),
        "filter all": lambda: build_expert_set(pool, out, FilterConfig(enabled=False, finished_only=False), seed=0),
        "expert set": lambda: read_expert_set(out) if out.exists() else None,
        "replay": lambda: ReplayBuffer(successes_only=False, per_problem=4).read([pool.folder]),
        "footer": lambda: shard_fault(pool.folder / SHARD),
        "resume": lambda: pool.drop_after(1),
    }


def test_a_changed_shard_is_read_or_named(pool: RolloutPool, tmp_path: Path) -> None:
    """The checksum tells most changes; a pool that someone else wrote may have the right ones."""
    path, out = pool.folder / SHARD, tmp_path / "expert.parquet"
    whole = {file: file.read_bytes() for file in pool.folder.iterdir()}
    refused, tries = 0, seeds(few=150)
    for number in tries:
        random = Random(number)
        for file, content in whole.items():
            file.write_bytes(content)
        out.unlink(missing_ok=True)
        if number % 3:
            path.write_bytes(mutated_bytes(whole[path], random))
        else:
            change_columns(path, random)
        if path.read_bytes() != whole[path]:
            assert pool.damaged().keys() == {SHARD}, f"change {number}"
        write_checksums(pool.folder)
        for reader, read in readers(pool, out).items():
            error = fault_of(read)
            told = error is None or (isinstance(error, RunFault | ValueError) and str(path) in str(error))
            assert told, f"change {number}, {reader}: {error!r}"
            refused += error is not None
    assert refused > len(tries) / 4
