"""Advantages: how much better than its group each rollout is. Pure functions.

Each takes rewards [P, G], one row per problem, and gives advantages of the same shape in float32. A row whose rewards
are all equal gets exactly 0.
"""

from __future__ import annotations

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
    """A = (r - mean(r)) / (std(r) + eps), the standard deviation with G - 1 below (GRPO, arXiv 2402.03300).

    Args: rewards [P, G] with G >= 2; eps keeps the quotient finite. Returns [P, G].
    """
    rewards = rewards.double()
    advantages = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + eps)
    # Decided by equality, not by std > 0: a rounding residue would pass that test and be blown up by the division.
    return advantages.masked_fill(_all_equal(rewards), 0.0).float()


def _all_equal(rewards: Tensor) -> Tensor:
    """[P, 1] bool."""
    return torch.amax(rewards, dim=1, keepdim=True) == torch.amin(rewards, dim=1, keepdim=True)
