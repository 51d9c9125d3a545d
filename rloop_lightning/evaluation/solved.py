"""Which problems are solved, now and ever, and in how many ways."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Coverage:
    """Solved problems, as shares of all problems. `ever` is at least `now`.

    Args:
        now: solved by the current policy.
        ever: solved in the pool, or now.
        lost: solved in the pool, and not now: what the policies of intermediate steps could do and this one does not.
    """

    now: float
    ever: float
    lost: float


def coverage(solved_in_pool: np.ndarray, solved_now: np.ndarray) -> Coverage:
    """Compare the problems that a pool solves with those that a policy solves.

    RLoop trains on the pool because intermediate policies solve problems that the last one fails (arXiv 2511.04285).
    More rollouts solve more problems: compare like with like, or read `lost` as an upper bound.

    Args:
        solved_in_pool: [N] bool, whether any rollout of the pool solves the problem.
        solved_now: [N] bool, the same problems in the same order.

    Raises:
        ValueError: the arrays differ in shape or are empty.
    """
    pool, now = np.asarray(solved_in_pool, dtype=bool), np.asarray(solved_now, dtype=bool)
    if pool.shape != now.shape or pool.ndim != 1 or not pool.size:
        raise ValueError(f"coverage needs the same problems twice, got {list(pool.shape)} and {list(now.shape)}")
    return Coverage(float(now.mean()), float((pool | now).mean()), float((pool & ~now).mean()))


def distinct_solutions(
    problem_ids: Sequence[str], solutions: Sequence[Hashable], right: Sequence[bool] | np.ndarray
) -> dict[str, int]:
    """The number of different right solutions of each problem, in the order in which problems first occur.

    Args:
        problem_ids: [R].
        solutions: [R], equal where two solutions count as one: the text, say, or its steps in a normal form.
        right: [R], whether each rollout is a success.

    Raises:
        ValueError: the arguments differ in length.
    """
    if not len(problem_ids) == len(solutions) == len(right):
        counts = f"{len(problem_ids)}, {len(solutions)} and {len(right)}"
        raise ValueError(f"problem_ids, solutions and right must have one entry per rollout, got {counts}")
    found: dict[str, set[Hashable]] = {problem_id: set() for problem_id in problem_ids}
    for problem_id, solution, success in zip(problem_ids, solutions, right, strict=True):
        if success:
            found[problem_id].add(solution)
    return {problem_id: len(different) for problem_id, different in found.items()}


def mean_distinct_solutions(
    problem_ids: Sequence[str], solutions: Sequence[Hashable], right: Sequence[bool] | np.ndarray
) -> float:
    """The mean number of different right solutions over the problems that have one; NaN if none has.

    Arguments and errors are those of `distinct_solutions`.
    """
    counts = [count for count in distinct_solutions(problem_ids, solutions, right).values() if count]
    return float(np.mean(counts)) if counts else float("nan")
