"""Averaging: the consolidated policy lies between the round's initial policy and the explored one. No data at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rloop_lightning.algorithms.consolidation import Consolidation
from rloop_lightning.model.averaging import has_product
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.fields import LeftOpenUnitInterval


class Average(Consolidation):
    """theta_{k+1} = theta_k + alpha (phi - theta_k), weight by weight (WiSE-FT, arXiv 2109.01903).

    phi is the explored policy. Nothing is sampled or trained. With an adapter, what is averaged is the product s B A
    that it adds to the weights. The average of two products has up to twice their rank, so it is exact only where that
    of the start is 0, as for a new adapter: B is multiplied by alpha. Everything else is refused.

    Args:
        alpha: how far to go from the start to the explored policy; 1 takes the explored policy itself.
        start: the policy at alpha 0: `initial`, the policy that the round began with, or `base`, the policy that the
            run began with.
    """

    does = "averaging the weights of the explored policy and those that it started from"

    def __init__(self, *, alpha: LeftOpenUnitInterval = 0.5, start: Literal["initial", "base"] = "initial") -> None:
        self.alpha = alpha
        self.start = start

    @property
    def reads_explored(self) -> bool:
        return True

    def plan(self) -> str:
        of = {"initial": "the round's initial policy", "base": "the base policy"}[self.start]
        return f"{of} + {self.alpha:g} x (explored policy - {of}), without data"

    def conflicts(self, policy: Policy, rounds: int) -> Iterator[str]:
        if policy.adapter is None:
            return
        why = (
            f"{self.flag} average: the average of two adapters has up to twice their rank, so it is exact only if one "
            "of them is new"
        )
        if has_product(policy.adapter):
            yield f"{why}; --policy.model is a trained adapter: merge it into its model, and name the merged folder"
        elif self.start == "initial" and rounds > 1:
            yield f"{why}, which round 2 does not begin with; set --consolidate.start base, or --loop.rounds 1"
