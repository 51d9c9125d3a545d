"""The validation set that is held out of the training set.

train, validation = hold_out(problems, size=None)

A problem's rank is a hash of its normalised text, and the problems with the lowest ranks are held out. The choice
depends neither on ids nor on the order of the rows nor on a seed, and copies of a problem are never separated.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from rloop_lightning.data.text import normalised_problem
from rloop_lightning.types import Problem

SHARE = 0.05
FEWEST = 8
MOST = 256
SMALLEST_SET = 5 * FEWEST  # different problems; of a smaller set, too large a part would be held out


def hold_out(problems: Sequence[Problem], size: int | None) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Split problems into training and validation problems, both in their order.

    Args:
        problems: the whole set.
        size: problems to hold out; copies of the last one are held out too. None holds out `SHARE` of the problems, at
            least `FEWEST` and at most `MOST`, and none of a set with fewer than `SMALLEST_SET` different problems.
            Between the two limits, a problem stays held out when the set grows.
    """
    ranks = [_rank(problem) for problem in problems]
    copies = Counter(ranks)
    order = sorted(copies)
    count = _default_count(order) if size is None else _count_of(size, [copies[rank] for rank in order])
    held_out = set(order[:count])
    ranked = list(zip(problems, ranks, strict=True))
    return (
        tuple(problem for problem, rank in ranked if rank not in held_out),
        tuple(problem for problem, rank in ranked if rank in held_out),
    )


def _default_count(order: Sequence[int]) -> int:
    if len(order) < SMALLEST_SET:
        return 0
    below = sum(rank < SHARE * 2**64 for rank in order)
    return min(max(below, FEWEST), MOST)


def _count_of(size: int, copies: Sequence[int]) -> int:
    """How many different problems, lowest ranks first, have `size` copies together."""
    return sum(total < size for total in accumulate(copies)) + 1 if size else 0


def _rank(problem: Problem) -> int:
    """A pseudo-random number below 2^64 from the problem's normalised text."""
    digest = hashlib.blake2b(normalised_problem(problem).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
