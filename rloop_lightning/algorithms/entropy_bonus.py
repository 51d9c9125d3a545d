"""Entropy bonus: a reward for policies that stay random (A3C, arXiv 1602.01783, section 4)."""

from __future__ import annotations

from torch import Tensor


def entropy_bonus(entropy: Tensor, coef: float) -> Tensor:
    """L_t = -coef H_t, added to the loss of each token; H_t is the entropy of the token's distribution, nats.

    Args: entropy [B, T], with gradients. Returns [B, T].
    """
    return -coef * entropy
