"""DAPO with a KL term against a reference policy: the constrained baseline for comparison with RLoop."""

from __future__ import annotations

from typing import Any

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.system.fields import NonNegativeFloat


class KLConstrained(DAPO):
    """DAPO with the KL term on by default: 0.04 with k3 in the loss, as in the GRPO paper (arXiv 2402.03300).

    Args:
        kl_beta: weight of the KL term against the round's initial policy; 0 is off and keeps no reference policy.
    """

    def __init__(self, *, kl_beta: NonNegativeFloat = 0.04, **kwargs: Any) -> None:
        super().__init__(kl_beta=kl_beta, **kwargs)
