"""Rollouts of a run for its page: of chosen problems, right and wrong ones of several steps, and some to compare.

One pass over the shards decodes texts and tokens of chosen problems. At most `MOST_BYTES` of texts and tokens are
decoded: of a larger run, evenly spaced shards are read. Memory grows with the number of chosen problems.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from rloop_lightning.evaluation.similarity import step_similarity
from rloop_lightning.rollouts.pool import list_rows
from rloop_lightning.rollouts.pool_scan import open_shard
from rloop_lightning.run.report.pool_totals import LONG_COLUMNS, PoolShard, PoolTotals

MOST_PROBLEMS = 400
MOST_STEPS = 12
"""Steps of a problem."""
MOST_OF_A_KIND = 2
"""Right rollouts of a problem in a step, and wrong ones."""
MOST_CHARACTERS = 4000
"""Characters of a text."""
MOST_BYTES = 1 << 29

_COMPARED = 64  # problems
_COMPARED_OF_A_STEP = 2
_COMPARED_OF_A_PART = 4
_COMPARED_TOKENS = 1024
_SHORT_COLUMNS = ("problem_id", "reward", "success", "finish_reason", "length")

Step = tuple[int, int]
"""Round, from 0, and rollout step, from 1."""


@dataclass(frozen=True)
class SampledRollout:
    """A rollout."""

    reward: float
    success: bool
    finish_reason: str
    length: int
    text: str


@dataclass
class Visit:
    """A problem in one rollout step: how many rollouts it has and how many are right, and the first of each kind."""

    rollouts: int = 0
    right: int = 0
    shown: list[SampledRollout] = field(default_factory=list)


@dataclass
class Samples:
    """The sampled rollouts.

    Args:
        visits: by problem and step.
        shards_read: shards whose rollouts were read.
        shards: all shards.
        similarity: similarity between parts of the run [parts, parts], NaN where there is no pair.
        parts: first and last place of each part.
    """

    visits: dict[str, dict[Step, Visit]]
    shards_read: int
    shards: int
    similarity: np.ndarray
    parts: list[tuple[int, int]]


def sample(totals: PoolTotals, *, parts: int = 12, most_bytes: int = MOST_BYTES) -> Samples:
    """Read the rollouts that the page shows and compares.

    Args:
        totals: the counts of the pools.
        parts: of the run, between which rollouts are compared.
        most_bytes: of texts and tokens that are decoded.

    Raises:
        DamagedError: a shard is damaged; the message names it.
    """
    shards = _affordable(totals.shards, most_bytes)
    found = None if len(shards) == len(totals.shards) else _visits(shards)
    chosen = chosen_problems(totals, found)
    visits: dict[str, dict[Step, Visit]] = {problem: {} for problem in chosen}
    # Of a sample, the problems that it visits most often, of which there are rollouts to compare.
    ordered = sorted(chosen, key=lambda name: (-found[name], name)) if found else _spread(sorted(chosen), _COMPARED)
    compared = _Compared(set(ordered[:_COMPARED]), totals.shards, parts)
    for shard in shards:
        table = _rows_of(shard, visits)
        compared.add(shard, table)
        _add_visits(visits, shard, table)
    spread = {
        problem: {step: steps[step] for step in spread_steps(steps, MOST_STEPS)} for problem, steps in visits.items()
    }
    return Samples(spread, len(shards), len(totals.shards), compared.similarity(), compared.parts)


def cut(text: str, most: int) -> str:
    """A text without its middle, if it has more than `most` characters."""
    rest = len(text) - most
    head = most // 3
    return f"{text[:head]}\n[... {rest:,} characters left out ...]\n{text[head - most :]}" if rest > 0 else text


def chosen_problems(totals: PoolTotals, among: Container[str] | None = None, *, most: int = MOST_PROBLEMS) -> list[str]:
    """At most `most` problems, evenly spread over the success rates of the run, from the lowest to the highest.

    Args:
        totals: the counts of the pools.
        among: problems to choose from; None takes all.
        most: number of problems.
    """
    rollouts, successes = totals.counts(totals.rounds)
    rates = successes / np.maximum(rollouts, 1)
    ids = [name for name in totals.ids if among is None or name in among]
    return _spread(sorted(ids, key=lambda name: (rates[totals.index[name]], name)), most)


def _spread(values: Sequence[Any], most: int) -> list[Any]:
    return [values[place * len(values) // most] for place in range(most)] if len(values) > most else list(values)


def _affordable(shards: Sequence[PoolShard], most_bytes: int) -> list[PoolShard]:
    """All shards, or evenly spaced ones whose texts and tokens are about `most_bytes`; at least one."""
    total = sum(shard.long_bytes for shard in shards)
    if total <= most_bytes:
        return list(shards)
    count = max(1, int(len(shards) * most_bytes / total))
    return [shards[int(place)] for place in np.linspace(0, len(shards) - 1, count).round()]


def _visits(shards: Sequence[PoolShard]) -> Counter[str]:
    """In how many of the shards each problem is."""
    found: Counter[str] = Counter()
    for shard in shards:
        with open_shard(shard.path, ["problem_id"]) as file:
            found.update(file.read(columns=["problem_id"], use_threads=False)["problem_id"].unique().to_pylist())
    return found


def _rows_of(shard: PoolShard, problems: Mapping[str, object]) -> pa.Table:
    """The rows of some problems."""
    tables = []
    columns = [*_SHORT_COLUMNS, *LONG_COLUMNS]
    with open_shard(shard.path, columns) as file:
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["problem_id"], use_threads=False)["problem_id"]
            encoded = ids.combine_chunks().dictionary_encode()
            wanted = np.array([name in problems for name in encoded.dictionary.to_pylist()], dtype=bool)
            mask = wanted[encoded.indices.to_numpy()] if len(wanted) else np.zeros(0, dtype=bool)
            if mask.any():
                tables.append(file.read_row_group(group, columns=columns, use_threads=False).filter(pa.array(mask)))
        empty = file.schema_arrow.empty_table().select(columns)
    return pa.concat_tables(tables, promote_options="none") if tables else empty


def _add_visits(visits: dict[str, dict[Step, Visit]], shard: PoolShard, table: pa.Table) -> None:
    """Add a shard's rollouts to those of their problems. Of many steps, some are dropped."""
    if not len(table):
        return
    codes, ids = _codes(table)
    success = table["success"].combine_chunks().to_numpy(zero_copy_only=False)
    key = (shard.round, shard.step)
    for place, (count, right) in enumerate(
        zip(np.bincount(codes, minlength=len(ids)), np.bincount(codes, success, len(ids)), strict=True)
    ):
        steps = visits[ids[place]]
        if len(steps) >= 2 * MOST_STEPS and key not in steps:
            steps = visits[ids[place]] = {step: steps[step] for step in spread_steps(steps, MOST_STEPS + 2)}
        visit = steps.setdefault(key, Visit())
        visit.rollouts += int(count)
        visit.right += int(right)
    shown = table.take(pa.array(_first(2 * codes + success, MOST_OF_A_KIND)))
    columns = [shown[name].to_pylist() for name in (*_SHORT_COLUMNS, "text")]
    for problem, reward, right, finish_reason, length, text in zip(*columns, strict=True):
        visit = visits[problem][key]
        one = SampledRollout(reward, right, finish_reason, length, cut(text, MOST_CHARACTERS))
        if sum(other.success == one.success for other in visit.shown) < MOST_OF_A_KIND:
            visit.shown.append(one)


def spread_steps(steps: Mapping[Step, Visit], most: int) -> list[Step]:
    """At most `most` steps, evenly spread; those with the rarer kind of rollouts, right or wrong, come first."""
    if len(steps) <= most:
        return list(steps)
    right = [step for step, visit in steps.items() if visit.right]
    wrong = [step for step, visit in steps.items() if visit.right < visit.rollouts]
    rare = _spread(min(right, wrong, key=len), most - most // 3)
    others = [step for step in steps if step not in rare]
    return sorted([*rare, *_spread(others, most - len(rare))])


def _codes(table: pa.Table) -> tuple[np.ndarray, list[str]]:
    """A number for each row's problem, and the problems by number."""
    encoded = table["problem_id"].combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _first(kinds: np.ndarray, most: int) -> np.ndarray:
    """The rows, in order, that are among the first `most` of their kind."""
    order = np.argsort(kinds, kind="stable")
    ordered = kinds[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    rank = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    return np.sort(order[rank < most])


class _Compared:
    """Rollouts drawn at random from some problems, whose similarity between parts of the run is computed."""

    def __init__(self, problems: set[str], shards: Sequence[PoolShard], parts: int) -> None:
        self._problems = problems
        last = max((shard.place for shard in shards), default=0)
        edges = np.unique(np.linspace(0, last, min(parts, last) + 1).round().astype(int))
        self.parts = [(int(low) + 1, int(high)) for low, high in itertools.pairwise(edges)]
        self._ends = np.array([high for _, high in self.parts])
        self._drawn: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)

    def add(self, shard: PoolShard, table: pa.Table) -> None:
        """Draw from a shard. A problem keeps the first few drawn rollouts of a part."""
        part = int(np.searchsorted(self._ends, shard.place))
        for problem, tokens in self._draw(shard, table):
            kept = self._drawn[problem, part]
            if len(kept) < _COMPARED_OF_A_PART:
                kept.append(tokens)

    def _draw(self, shard: PoolShard, table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
        if not len(table):
            return
        codes, ids = _codes(table)
        rows = np.flatnonzero(np.array([name in self._problems for name in ids])[codes])
        shuffled = np.random.default_rng((shard.round, shard.step)).permutation(rows)
        drawn = shuffled[_first(codes[shuffled], _COMPARED_OF_A_STEP)] if len(rows) else rows
        taken = table.take(pa.array(drawn))
        tokens = list_rows(taken["completion_ids"].combine_chunks())
        for problem, completion in zip(taken["problem_id"].to_pylist(), tokens, strict=True):
            yield problem, completion[:_COMPARED_TOKENS].copy()

    def similarity(self) -> np.ndarray:
        """[parts, parts]"""
        flat = [(problem, part, one) for (problem, part), drawn in self._drawn.items() for one in drawn]
        if not flat:
            return np.full((len(self.parts), len(self.parts)), np.nan)
        problems, parts, completions = zip(*flat, strict=True)
        return step_similarity(problems, parts, completions, len(self.parts))
