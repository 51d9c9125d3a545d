"""Generates rollout pools of any size, to measure their readers, such as the filter on 10 million rollouts.

The shards are like those of an exploration: the same columns, row groups and compression, one shard per rollout step,
and consistent tokens and texts. The success rates of the problems are spread evenly over (0, 1), so a tenth of them is
hard. Successes repeat as in a run. One shard is in memory at a time, and the seed decides every byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from rloop_lightning.rollouts.pool import FEW_SUCCESSES, LOGPROBS, POOL_SCHEMA, TOKEN_IDS, write_shard

_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz0123456789+-*/=()", dtype=np.uint8)

_FAILURES = 1 << 40  # distinct failures per problem, so that copies are rare


@dataclass(frozen=True)
class PoolShape:
    """The contents of a pool.

    Args:
        rollouts: total number of rollouts, rounded up to whole shards.
        problems: number of problems; rollout steps take them in turn.
        problems_per_step: problems per shard.
        rollouts_per_problem: rollouts per problem in a shard.
        min_tokens: length of the shortest completion, tokens.
        max_tokens: length of the longest completion, tokens.
        solutions: distinct successes per problem; all others are copies.
    """

    rollouts: int = 10_000_000
    problems: int = 10_000
    problems_per_step: int = 125
    rollouts_per_problem: int = 8
    min_tokens: int = 32
    max_tokens: int = 64
    solutions: int = 256

    @property
    def steps(self) -> int:
        return -(-self.rollouts // (self.problems_per_step * self.rollouts_per_problem))


def write_pool(folder: Path, shape: PoolShape, seed: int = 0) -> None:
    """Write the missing shards `step-000001.parquet` and so on into `folder`.

    A larger pool is a smaller one with additional shards.
    """
    rates = np.random.default_rng(seed).permutation((np.arange(shape.problems) + 0.5) / shape.problems)
    ids = pa.array([f"problem-{number:06d}" for number in range(shape.problems)])
    for step in range(shape.steps):
        path = folder / f"step-{step + 1:06d}.parquet"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, step])
        first = step * shape.problems_per_step
        taken = np.arange(first, first + shape.problems_per_step) % shape.problems
        problems = np.repeat(taken[:, None], shape.rollouts_per_problem, axis=1)  # [P, G], as all below
        success = rng.random(problems.shape) < rates[problems]
        which = rng.integers(np.where(success, shape.solutions, _FAILURES))
        keys = ((2 * problems + success) * _FAILURES + which).astype(np.uint64)
        few = success.mean(axis=1, keepdims=True) <= FEW_SUCCESSES
        tables = [
            _table(ids.take(pa.array(problems[kind])), keys[kind], good, shape, step, rng)
            for kind, good in ((success & few, True), (success & ~few, True), (~success, False))
            if kind.any()
        ]
        write_shard(path, tables, rollout_step=step)


def _table(
    problem_ids: pa.Array, keys: np.ndarray, success: bool, shape: PoolShape, step: int, rng: np.random.Generator
) -> pa.Table:
    """Rows whose tokens are determined by their keys, so that equal keys are copies."""
    rows = len(keys)
    spread = np.uint64(shape.max_tokens - shape.min_tokens + 1)
    lengths = shape.min_tokens + (_mixed(keys) % spread).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    tokens = _mixed(np.repeat(keys, lengths) + _mixed(position.astype(np.uint64))) % np.uint64(len(_LETTERS))
    logprobs = -0.3 * rng.standard_exponential(len(tokens), dtype=np.float32)
    arrow_offsets = pa.array(offsets, pa.int32())
    text = [None, arrow_offsets.buffers()[1], pa.py_buffer(_LETTERS[tokens])]
    columns = {
        "round": np.zeros(rows, np.int32),
        "rollout_step": np.full(rows, step, np.int32),
        "policy_version": np.full(rows, step, np.int32),
        "problem_id": problem_ids,
        "completion_ids": pa.ListArray.from_arrays(arrow_offsets, pa.array(tokens, pa.int32()), type=TOKEN_IDS),
        "text": pa.StringArray.from_buffers(rows, text[1], text[2]),
        "reward": np.full(rows, float(success)),
        "success": np.full(rows, success),
        "check_fault": pa.array([""] * rows, POOL_SCHEMA.field("check_fault").type),
        "finish_reason": pa.array(["stop"] * rows, POOL_SCHEMA.field("finish_reason").type),
        "length": lengths.astype(np.int32),
        "sampling_logprob_sum": np.add.reduceat(logprobs, offsets[:-1], dtype=np.float64),
        "sampling_logprobs": pa.ListArray.from_arrays(arrow_offsets, pa.array(logprobs), type=LOGPROBS),
        "run_id": ["benchmark"] * rows,
    }
    arrays = [
        values if isinstance(values, pa.Array) else pa.array(values, field.type)
        for field, values in ((field, columns[field.name]) for field in POOL_SCHEMA)
    ]
    return pa.Table.from_arrays(arrays, schema=POOL_SCHEMA)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Hash each number to 64 pseudo-random bits (the finalizer of splitmix64)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
