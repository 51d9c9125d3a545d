"""Rollouts by problem, read from the shards of pools, for experience replay.

buffer = ReplayBuffer(successes_only=True, per_problem=16)
buffer.read([run / "round-0" / "pool"])                     # reads only new shards
buffer.select("problem-7", 2, "random", rng)                # two of the buffer.count("problem-7") stored rollouts
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.errors import RunFault
from rloop_lightning.rollouts.pool import TRUNCATED_KEY, RolloutPool, shard_step, wrong_columns
from rloop_lightning.system.checksums import damaged_files

Selection = Literal["recent", "random", "low-entropy", "max-variance"]

_COLUMNS = ["problem_id", "completion_ids", "sampling_logprobs", "reward", "success", "finish_reason"]

_ADVICE = "it can't be replayed: restore it, or remove it to go on without its rollouts"


@dataclass(frozen=True)
class StoredRollout:
    """The fields of a pooled rollout that replay needs."""

    completion_ids: np.ndarray  # [T] int64
    sampling_logprobs: np.ndarray  # [T] float32, nats
    reward: float
    success: bool
    finish_reason: Literal["stop", "length"]

    @property
    def entropy(self) -> float:
        """Estimated entropy of the policy that sampled it, nats per token: minus its mean logprob."""
        return -float(self.sampling_logprobs.mean(dtype=np.float64))


class ReplayBuffer:
    """The newest distinct rollouts of each problem.

    Args:
        successes_only: keep successes only.
        per_problem: keep the newest `per_problem` rollouts of each problem.
    """

    def __init__(self, *, successes_only: bool, per_problem: int) -> None:
        self.successes_only = successes_only
        self.per_problem = per_problem
        self.best_success_rate = 0.0
        """The largest success rate of any shard read so far."""
        self.largest_token = 0
        """The largest token id read so far."""
        self._read: set[Path] = set()
        self._stored: dict[str, OrderedDict[bytes, StoredRollout]] = defaultdict(OrderedDict)

    def __len__(self) -> int:
        """Number of stored rollouts, over all problems."""
        return sum(map(len, self._stored.values()))

    def count(self, problem_id: str, longest: float = math.inf) -> int:
        """Number of stored rollouts of a problem, of those with at most `longest` completion tokens."""
        return len(self._of(problem_id, longest))

    def read(self, folders: Sequence[Path]) -> None:
        """Read the new shards, folder by folder, in the order of their steps.

        Raises:
            RunFault: a shard can't be read or is damaged; the message names it.
        """
        for folder in folders:
            shards = [path for path in RolloutPool(folder).shards() if path not in self._read]
            for name, fault in damaged_files(folder, [path.name for path in shards]).items():
                raise RunFault(f"{folder / name} {fault}; {_ADVICE}")
            for path in sorted(shards, key=lambda path: (shard_step(path.name), path.name)):
                self._take(path)
                self._read.add(path)

    def select(
        self, problem_id: str, count: int, how: Selection, rng: np.random.Generator, longest: float = math.inf
    ) -> list[StoredRollout]:
        """`count` stored rollouts of a problem.

        Args:
            how: `recent`, the newest; `random`; `low-entropy`, those with the lowest estimated entropy (ExGRPO,
                arXiv 2510.02245); `max-variance`, those whose rewards vary most (RePO, arXiv 2506.09340).
            longest: leave out those with more completion tokens.

        Raises:
            ValueError: fewer are stored.
        """
        stored = self._of(problem_id, longest)
        if len(stored) < count:
            raise ValueError(f"{count} rollouts of problem {problem_id!r} are requested, but {len(stored)} are stored")
        if how == "recent":
            return stored[len(stored) - count :]
        if how == "random":
            return [stored[i] for i in rng.permutation(len(stored))[:count]]
        if how == "low-entropy":
            return sorted(stored, key=lambda rollout: rollout.entropy)[:count]
        return _most_spread(stored, count)

    def _of(self, problem_id: str, longest: float) -> list[StoredRollout]:
        stored: Mapping[bytes, StoredRollout] = self._stored.get(problem_id, {})
        return [rollout for rollout in stored.values() if len(rollout.completion_ids) <= longest]

    def _take(self, path: Path) -> None:
        successes = rollouts = 0
        for problem_id, rollout in _rollouts(path):
            rollouts += 1
            successes += rollout.success
            if self.successes_only and not rollout.success:
                continue
            of_problem = self._stored[problem_id]
            self.largest_token = max(self.largest_token, int(rollout.completion_ids.max()))
            key = rollout.completion_ids.tobytes()
            of_problem.pop(key, None)  # a repeated completion counts as new
            of_problem[key] = rollout
            if len(of_problem) > self.per_problem:
                of_problem.popitem(last=False)
        self.best_success_rate = max(self.best_success_rate, successes / max(rollouts, 1))


def shard_fault(path: Path) -> str | None:
    """Why a file can't be replayed, judged by its Parquet footer; None if it can."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        return f"{path}: not a Parquet file, or damaged ({error})"
    if other := wrong_columns(schema, _COLUMNS):
        return f"{path}: not a shard of a rollout pool; look at its columns {', '.join(other)}"
    if TRUNCATED_KEY in (schema.metadata or {}):
        return (
            f"{path}: sampled with --engine.top_k or --engine.top_p, and a pool does not store the tokens that were "
            "kept, so ratios would be biased; take the pool of a run without them"
        )
    return None


def _rollouts(path: Path) -> Iterator[tuple[str, StoredRollout]]:
    """Yield problem ids and rollouts of a shard, with a part of it in memory at a time."""
    try:
        with pq.ParquetFile(path) as shard:
            if wrong := wrong_columns(shard.schema_arrow, _COLUMNS):
                raise ValueError(f"look at its columns {', '.join(wrong)}")
            for part in shard.iter_batches(columns=_COLUMNS):
                columns = [part.column(name) for name in _COLUMNS]
                for problem_id, ids, logprobs, reward, success, finish_reason in zip(*columns, strict=True):
                    if not 0 < len(ids) == len(logprobs):
                        raise ValueError(f"a rollout has {len(ids)} tokens and {len(logprobs)} logprobs")
                    yield (
                        problem_id.as_py(),
                        StoredRollout(
                            completion_ids=ids.values.to_numpy().astype(np.int64),
                            sampling_logprobs=logprobs.values.to_numpy().copy(),
                            reward=reward.as_py(),
                            success=success.as_py(),
                            finish_reason=finish_reason.as_py(),
                        ),
                    )
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise RunFault(f"{path}: not a shard of a rollout pool, or damaged ({error}); {_ADVICE}") from error


def _most_spread(stored: Sequence[StoredRollout], count: int) -> list[StoredRollout]:
    """The `count` rollouts with the largest reward variance: some of the lowest, some of the highest."""
    ordered = sorted(stored, key=lambda rollout: rollout.reward)
    candidates = [ordered[:low] + ordered[len(ordered) - (count - low) :] for low in range(count + 1)]
    return max(candidates, key=lambda rollouts: float(np.var([rollout.reward for rollout in rollouts])))
