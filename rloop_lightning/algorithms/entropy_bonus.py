"""Entropy bonus: rewards a policy for high entropy (A3C, arXiv 1602.01783, section 4)."""

from __future__ import annotations

from torch import Tensor


def entropy_bonus(entropy: Tensor, coef: float) -> Tensor:
    """L_t = -coef H_t, added to each token's loss. H_t is the entropy of the distribution at the token, nats.

    Args: entropy [B, T], with gradients. Returns [B, T].
    """
    return -coef * entropy
