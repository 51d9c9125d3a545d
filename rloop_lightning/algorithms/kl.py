"""DAPO held near a reference policy by a KL term: the constrained baseline that RLoop is compared with."""

from __future__ import annotations

from typing import Any

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.system.fields import NonNegativeFloat


class KLConstrained(DAPO):
    """DAPO whose KL term is on by default: 0.04 with k3 in the loss, as in GRPO's paper (arXiv 2402.03300).

    Args:
        kl_beta: weight of the KL term against the policy that the round began with; 0 is none, and keeps no copy of it.
    """

    def __init__(self, *, kl_beta: NonNegativeFloat = 0.04, **kwargs: Any) -> None:
        super().__init__(kl_beta=kl_beta, **kwargs)
