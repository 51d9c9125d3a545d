"""Selects the expert set from the rollout pool: the successes on hard problems (RLoop, arXiv 2511.04285).

    stats = build_expert_set(pool, run / "round-0" / "expert.parquet", FilterConfig(), seed=0)

The filter makes two passes over the shards, in memory that does not grow with the pool. The first pass counts every
problem's rollouts and successes; the second keeps successes of the hard problems. The expert set depends on the pool's
rollouts and the seed, not on the order or number of the shards.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rloop_lightning.rollouts.expert_set import write_expert_set
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.pool_scan import Success, count_rollouts, successes_of
from rloop_lightning.system.fields import LeftOpenUnitInterval, NonNegativeInt, check_fields


@dataclass(frozen=True)
class FilterConfig:
    """Selects which rollouts of the pool enter the expert set.

    Args:
        enabled: keep successes of hard problems only. False keeps the successes of every problem, the ablation without
            the hard-problem filter; `max_per_problem` and `deduplicate` still apply.
        max_success_rate: a problem is hard if 0 < success rate < this, over its rollouts of the whole exploration
            (fraction; 0.10 in the paper).
        max_per_problem: maximum number of rollouts per problem, drawn at random, so that a few problems don't dominate;
            0 is no limit.
        deduplicate: among a problem's rollouts with identical completion tokens, keep the earliest.
    """

    enabled: bool = True
    max_success_rate: LeftOpenUnitInterval = 0.10
    max_per_problem: NonNegativeInt = 8
    deduplicate: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "--filter")


@dataclass(frozen=True)
class ExpertStats:
    """The filter's counts. `hard_successes` = `kept` + `duplicates` + `over_cap`.

    Args:
        problems_seen: problems in the pool.
        rollouts_seen: rollouts in the pool.
        successes: rollouts in the pool that are successes.
        hard_problems: hard problems; with `enabled` false, problems with a success.
        hard_successes: successes of these problems.
        kept: rollouts in the expert set.
        duplicates: further copies of the rollouts in the expert set.
        over_cap: successes of these problems, copies included, beyond `max_per_problem`.
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


def build_expert_set(pool: RolloutPool, out: Path, config: FilterConfig, seed: int) -> ExpertStats:
    """Write the pool's expert set to `out` atomically. An empty set is written too.

    Rows are sorted by problem id. The same rollouts, config and seed give the same bytes. Memory grows with the number
    of problems and of kept rows, not with the pool.

    Args:
        pool: every rollout of a round's exploration.
        out: the Parquet file.
        config: the selection.
        seed: seed of the draw from a problem with more than `config.max_per_problem` successes.
    """
    counts = count_rollouts(pool)
    successes = counts["successes"].to_numpy()
    # The quotient is the double nearest to the rate, like a literal such as 0.10. So 1 of 10 is not below 0.10.
    hard = (successes > 0) & (successes / counts["rollouts"].to_numpy() < config.max_success_rate)
    taken = hard if config.enabled else successes > 0
    expert = {
        problem_id: _ProblemDraw(config.max_per_problem)
        for problem_id in sorted(counts["problem_id"].filter(pa.array(taken)).to_pylist())
    }
    key = str(seed).encode()
    for row in successes_of(pool, expert.keys()):
        expert[row.problem_id].offer(_digest(row, key, config.deduplicate), row, config.deduplicate)

    drawn = [entry for draw in expert.values() for entry in draw.sorted()]
    write_expert_set(out, drawn)
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


def _digest(row: Success, key: bytes, deduplicate: bool) -> int:
    """A row's rank in its problem's draw: pseudo-random, from the seed and the row's content."""
    content = hashlib.blake2b(row.completion_ids, key=key, digest_size=16)
    content.update(row.problem_id.encode())
    if not deduplicate:  # otherwise copies would have equal ranks and be drawn together
        content.update(f"{row.rollout_step} {row.reward!r}".encode() + row.sampling_logprobs)
    return int.from_bytes(content.digest(), "big")


def _order(row: Success) -> tuple[int, bytes, float]:
    """Sort key among copies: the smallest is kept."""
    return row.rollout_step, row.sampling_logprobs, row.reward


class _ProblemDraw:
    """Keeps the `limit` offered rows with the smallest digests (0: all), independent of their order."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: dict[tuple[int, int], tuple[Success, int]] = {}  # (digest, serial) -> row, copies
        self._largest: list[tuple[int, int]] = []  # heap of the negated keys
        self._serial = itertools.count(1)

    def offer(self, digest: int, row: Success, deduplicate: bool) -> None:
        key = (digest, 0 if deduplicate else next(self._serial))
        if key in self._rows:
            # Every copy of a row that is finally kept is counted here, because its digest was never too large.
            held, copies = self._rows[key]
            self._rows[key] = (min(held, row, key=_order), copies + 1)
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

    def sorted(self) -> list[tuple[Success, int]]:
        """Rows and how often each was offered, sorted by digest."""
        return [entry for _, entry in sorted(self._rows.items())]
