"""How much of what a policy could solve a later one can't: the forgetting rate between two evaluations."""

from __future__ import annotations

from torch import Tensor


def forgetting_rate(solved_before: Tensor, solved_after: Tensor) -> Tensor:
    """F(a -> b) = |solved at a, not at b| / |solved at a|, over a fixed problem set.

    0 is nothing forgotten, 1 everything; what b solves beyond a does not count. NaN where a solved nothing.

    Args: solved_before, solved_after [N] bool, problem by problem in the same order. Returns a scalar.
    Raises ValueError when the two differ in length.
    """
    if solved_before.shape != solved_after.shape:
        raise ValueError(
            "the two evaluations must be of the same problems, got "
            f"{len(solved_before)} before and {len(solved_after)} after"
        )
    before, after = solved_before.bool(), solved_after.bool()
    return (before & ~after).sum() / before.sum()
