"""Advantages: how much better each rollout is than its group. Pure functions.

Each function maps rewards [P, G], one row per problem, to float32 advantages [P, G]. A row of equal rewards gets
exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def centred(rewards: Tensor) -> Tensor:
    """A = r - mean(r) (Dr. GRPO, arXiv 2503.20783; MiniRL, arXiv 2512.01374).

    Args: rewards [P, G]. Returns [P, G].
    """
    rewards = rewards.double()
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    return advantages.masked_fill(_all_equal(rewards), 0.0).float()


def group_normalised(rewards: Tensor, *, eps: float = 1e-6) -> Tensor:
    """A = (r - mean(r)) / (std(r) + eps), std with divisor G - 1 (GRPO, arXiv 2402.03300).

    Args: rewards [P, G] with G >= 2; eps keeps the quotient finite. Returns [P, G].
    """
    rewards = rewards.double()
    advantages = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + eps)
    # Test for equal rewards, not for std > 0: a rounding error would make std positive, and the division amplify it.
    return advantages.masked_fill(_all_equal(rewards), 0.0).float()


def mean_normalised(rewards: Tensor) -> Tensor:
    """A = (r - mean(r)) / mean(r), and 0 where the mean is not positive (MaxRL, arXiv 2602.02710).

    The paper's rewards are 0 or 1. Rewards >= 0 have advantages of at most G - 1. Rewards below 0, of the task or of a
    punishment, can bring the mean as near to 0 as you like. The divisor is therefore at least (max - min) / G, which no
    mean of rewards >= 0 is below (ours).

    Args: rewards [P, G]. Returns [P, G].
    """
    rewards = rewards.double()
    mean = rewards.mean(dim=1, keepdim=True)
    spread = (torch.amax(rewards, dim=1, keepdim=True) - torch.amin(rewards, dim=1, keepdim=True)) / rewards.shape[1]
    advantages = (rewards - mean) / torch.maximum(mean, spread)
    return advantages.masked_fill(_all_equal(rewards) | (mean <= 0), 0.0).float()


def _all_equal(rewards: Tensor) -> Tensor:
    """[P, 1] bool."""
    return torch.amax(rewards, dim=1, keepdim=True) == torch.amin(rewards, dim=1, keepdim=True)


def by_group(function: Callable[[Tensor], Tensor], values: Tensor, groups: Tensor) -> Tensor:
    """Apply a function of [P, G], such as those above, to groups that may differ in size.

    Args: values [B]; groups [B], the group number of each row. Rows of a group must be adjacent. Returns float32 [B].
    """
    _, sizes = groups.unique_consecutive(return_counts=True)
    size_of_row = sizes.repeat_interleave(sizes)
    results = torch.zeros(len(values), device=values.device)
    for size in sizes.unique().tolist():
        rows = size_of_row == size
        results[rows] = function(values[rows].unflatten(0, (-1, size))).flatten()
    return results
