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
    of all its pairs. The cost is therefore linear in the number of rollouts. A completion of fewer than n tokens counts
    as one n-gram.

    Args:
        problem_ids: [R].
        rollout_steps: [R].
        completions: R arrays of token ids.
        n: length of an n-gram, tokens.
        max_pairs: pairs compared per problem and kind.
        seed: seed of the random pairs.
    """
    rng = np.random.default_rng(seed)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, problem_id in enumerate(problem_ids):
        rows_of[problem_id].append(row)
    sums, counts = np.zeros(2), np.zeros(2, dtype=np.int64)
    for problem_id in sorted(rows_of):
        rows = sorted(rows_of[problem_id], key=rollout_steps.__getitem__)
        grams = _ngram_sets([completions[row] for row in rows], n)
        blocks = _Blocks(np.array([rollout_steps[row] for row in rows]))
        for kind, (count, pairs) in enumerate((blocks.intra(rng, max_pairs), blocks.inter(rng, max_pairs))):
            if count:
                sums[kind] += count * np.mean([jaccard(grams[first], grams[second]) for first, second in pairs])
                counts[kind] += count
    intra, inter = np.divide(sums, counts, out=np.full(2, np.nan), where=counts > 0).tolist()
    return Similarity(intra, inter, int(counts[0]), int(counts[1]))


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """|A and B| / |A or B| of two sets, each an array without repeats; 1 if both are empty."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - common
    return common / union if union else 1.0


def _ngram_sets(completions: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
    """The n-grams of each completion as a set of numbers. Equal n-grams have equal numbers in all sets."""
    windows = [_windows(np.asarray(ids, dtype=np.int64), n) for ids in completions]
    _, numbers = np.unique(np.concatenate(windows), axis=0, return_inverse=True)
    ends = np.cumsum([len(rows) for rows in windows])[:-1]
    return [np.unique(part) for part in np.split(numbers.ravel(), ends)]


def _windows(ids: np.ndarray, n: int) -> np.ndarray:
    """All runs of n consecutive tokens [T - n + 1, n]; a shorter completion is padded with -1."""
    if len(ids) < n:
        ids = np.concatenate([ids, np.full(n - len(ids), -1)])
    return np.lib.stride_tricks.sliding_window_view(ids, n)


Pairs = list[tuple[int, int]]


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
