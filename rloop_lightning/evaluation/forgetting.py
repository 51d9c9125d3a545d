"""The forgetting rate between two evaluations: the share of solved problems that a later policy fails."""

from __future__ import annotations

from torch import Tensor


def forgetting_rate(solved_before: Tensor, solved_after: Tensor) -> Tensor:
    """F(a -> b) = |solved at a, not at b| / |solved at a|, over a fixed problem set.

    0 means nothing was forgotten, 1 everything. Problems that only b solves don't count. NaN if a solved nothing.

    Args: solved_before, solved_after [N] bool, over the same problems in the same order. Returns a scalar.
    Raises ValueError if the two differ in length.
    """
    if solved_before.shape != solved_after.shape:
        raise ValueError(
            "the two evaluations must be of the same problems, got "
            f"{len(solved_before)} before and {len(solved_after)} after"
        )
    before, after = solved_before.bool(), solved_after.bool()
    return (before & ~after).sum() / before.sum()
