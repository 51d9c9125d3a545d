"""Similarity of a problem's rollouts: mean Jaccard similarity of their token n-grams.

Intra-step pairs are from one rollout step, inter-step pairs from two. RLoop (arXiv 2511.04285) concludes from a low
inter-step similarity that the policies of intermediate steps solve problems in different ways.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Pairs = list[tuple[int, int]]

_NO_GRAM = np.uint64(2**64 - 1)  # hashes have 63 bits
_CHUNK = 1 << 20  # hashes of compared pairs in memory at once, 8 MB


@dataclass(frozen=True)
class Similarity:
    """Mean Jaccard similarity over pairs of rollouts of the same problem, in [0, 1]; NaN if there is no pair."""

    intra_step: float
    inter_step: float
    intra_pairs: int  # number of pairs, compared or not
    inter_pairs: int


def ngram_similarity(
    problem_ids: Sequence[str],
    rollout_steps: Sequence[int],
    completions: Sequence[np.ndarray],
    *,
    n: int = 4,
    max_pairs: int = 256,
    seed: int = 0,
) -> Similarity:
    """Similarity of R rollouts within and between rollout steps.

    A problem with more than `max_pairs` pairs of a kind is estimated from `max_pairs` random ones, and keeps the weight
    of all its pairs. The cost is therefore linear in the number of rollouts, and memory is bounded by the completions
    of one problem's compared pairs. A completion of fewer than n tokens counts as one n-gram.

    Args:
        problem_ids: [R].
        rollout_steps: [R].
        completions: R arrays of token ids.
        n: length of an n-gram, tokens.
        max_pairs: pairs compared per problem and kind.
        seed: seed of the random pairs.

    Raises:
        ValueError: the arguments differ in length, or `n` or `max_pairs` is below 1.
    """
    if n < 1 or max_pairs < 1:
        raise ValueError(f"n and max_pairs must be at least 1, got {n} and {max_pairs}")
    if not len(problem_ids) == len(rollout_steps) == len(completions):
        lengths = f"{len(problem_ids)}, {len(rollout_steps)} and {len(completions)}"
        raise ValueError(f"problem_ids, rollout_steps and completions must have one entry per rollout, got {lengths}")
    rng = np.random.default_rng(seed)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, problem_id in enumerate(problem_ids):
        rows_of[problem_id].append(row)
    sums, counts = np.zeros(2), np.zeros(2, dtype=np.int64)
    for problem_id in sorted(rows_of):
        rows = sorted(rows_of[problem_id], key=rollout_steps.__getitem__)
        blocks = _Blocks(np.array([rollout_steps[row] for row in rows]))
        drawn = [blocks.intra(rng, max_pairs), blocks.inter(rng, max_pairs)]
        values = _jaccard([completions[row] for row in rows], [pair for _, pairs in drawn for pair in pairs], n)
        ends = np.cumsum([len(pairs) for _, pairs in drawn])[:-1]
        for kind, ((count, _), of_kind) in enumerate(zip(drawn, np.split(values, ends), strict=True)):
            if count:
                sums[kind] += count * of_kind.mean()
                counts[kind] += count
    intra, inter = np.divide(sums, counts, out=np.full(2, np.nan), where=counts > 0).tolist()
    return Similarity(intra, inter, int(counts[0]), int(counts[1]))


def step_similarity(
    problem_ids: Sequence[str], steps: Sequence[int], completions: Sequence[np.ndarray], count: int, *, n: int = 4
) -> np.ndarray:
    """Similarity between every two of some steps: mean Jaccard similarity over all pairs of rollouts of a problem.

    The diagonal is over pairs within a step. All pairs are compared, so pass a few rollouts of each problem.

    Args:
        problem_ids: [R].
        steps: [R], numbers from 0 to `count` - 1, of rollout steps or of parts of a run.
        completions: R arrays of token ids.
        count: number of steps.
        n: length of an n-gram, tokens.

    Returns:
        [count, count], symmetric; NaN where there is no pair.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, problem_id in enumerate(problem_ids):
        rows_of[problem_id].append(row)
    sums, pairs = np.zeros((count, count)), np.zeros((count, count))
    for rows in rows_of.values():
        both = list(itertools.combinations(range(len(rows)), 2))
        values = _jaccard([completions[row] for row in rows], both, n)
        of = np.array([steps[row] for row in rows])[np.array(both, dtype=np.int64).reshape(-1, 2)]
        low, high = of.min(axis=1), of.max(axis=1)
        np.add.at(sums, (low, high), values)
        np.add.at(pairs, (low, high), 1)
    mean = np.divide(sums, pairs, out=np.full((count, count), np.nan), where=pairs > 0)
    return np.where(np.tri(count, k=-1, dtype=bool), mean.T, mean)


def _jaccard(completions: Sequence[np.ndarray], pairs: Pairs, n: int) -> np.ndarray:
    """|A and B| / |A or B| of the n-gram sets of each pair of rows [pairs]."""
    if not pairs:
        return np.zeros(0)
    used, index = np.unique(np.array(pairs), return_inverse=True)
    first, second = index.reshape(-1, 2).T
    sets = _ngram_sets([completions[row] for row in used], n)
    sizes = (sets != _NO_GRAM).sum(axis=1)
    common = np.empty(len(pairs), dtype=np.int64)
    chunk = max(1, _CHUNK // (2 * sets.shape[1]))
    for start in range(0, len(pairs), chunk):
        part = slice(start, start + chunk)
        both = np.concatenate([sets[first[part]], sets[second[part]]], axis=1)
        both.sort(axis=1, kind="stable")  # an n-gram of both sets then stands beside its equal
        common[part] = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] != _NO_GRAM)).sum(axis=1)
    return common / (sizes[first] + sizes[second] - common)


def _ngram_sets(completions: Sequence[np.ndarray], n: int) -> np.ndarray:
    """The n-grams of R completions as sets of 63-bit hashes [R, L], each padded with `_NO_GRAM`.

    Two of a million different n-grams have equal hashes with probability 5e-8. A completion of fewer than n tokens is
    one n-gram, padded with -1.
    """
    lengths = np.array([len(ids) for ids in completions])
    windows = np.maximum(1, lengths - n + 1)
    width = int(windows.max())
    ids = np.full((len(completions), width + n - 1), -1, dtype=np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(completions)
    tokens = ids.view(np.uint64)
    hashes = np.zeros((len(completions), width), dtype=np.uint64)
    for offset in range(n):
        hashes = _mixed(hashes + tokens[:, offset : offset + width])
    hashes >>= np.uint64(1)
    hashes[np.arange(width) >= windows[:, None]] = _NO_GRAM
    hashes.sort(axis=1)
    hashes[:, 1:][hashes[:, 1:] == hashes[:, :-1]] = _NO_GRAM
    return hashes


def _mixed(state: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers whose every bit depends on all bits: SplitMix64's (10.1145/2660193.2660195)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class _Blocks:
    """The rollouts of one problem, sorted by rollout step: rows 0 .. R-1, one block per step."""

    def __init__(self, steps: np.ndarray) -> None:
        _, starts, block, sizes = np.unique(steps, return_index=True, return_inverse=True, return_counts=True)
        self._ranges = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        self._start, self._size = starts[block], sizes[block]  # [R], of each row's block

    def intra(self, rng: np.random.Generator, limit: int) -> tuple[int, Pairs]:
        """The number of pairs within blocks, and all of them, or `limit` drawn with replacement."""
        partners = self._size - 1
        count = int(partners.sum()) // 2
        if count <= limit:
            return count, [pair for block in self._ranges for pair in itertools.combinations(block, 2)]
        first = rng.choice(len(partners), limit, p=partners / partners.sum())
        second = self._start[first] + rng.integers(partners[first])
        second += second >= first  # a row is not its own partner
        return count, list(zip(first, second, strict=True))

    def inter(self, rng: np.random.Generator, limit: int) -> tuple[int, Pairs]:
        """The number of pairs across blocks, and all of them, or `limit` drawn with replacement."""
        partners = len(self._size) - self._size
        count = int(partners.sum()) // 2
        if count <= limit:
            across = itertools.combinations(self._ranges, 2)
            return count, [pair for blocks in across for pair in itertools.product(*blocks)]
        first = rng.choice(len(partners), limit, p=partners / partners.sum())
        second = rng.integers(partners[first])
        second += np.where(second >= self._start[first], self._size[first], 0)  # skip the row's own block
        return count, list(zip(first, second, strict=True))
