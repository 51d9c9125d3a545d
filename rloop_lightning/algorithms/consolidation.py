"""What all consolidations share. Each makes theta_{k+1}, the policy that the next round begins with.

Consolidation             the base class
  TrainedConsolidation    a LightningModule with an optimizer
    FineTuning            trains on the round's expert set (fine_tuning.py; rft.py)
    Distil                trains on its own samples (distil.py)
  Average                 trains nothing: averages weights (average.py)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from rloop_lightning.algorithms.hyperparameters import CheckedHyperparameters
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.fields import PositiveInt

Start = Literal["initial", "explored", "base"]
"""theta_k, the round's initial policy; phi, its explored policy; theta_0, the base policy."""


class Consolidation(CheckedHyperparameters, ABC):
    """Makes a round's consolidated policy. Subclass one of the kinds below it, which say how."""

    flag = "--consolidate"

    takes_experts: ClassVar[bool] = False
    """Whether it trains on an expert set, which the filter then makes of the round's pool."""

    does: ClassVar[str]
    """What it does, as in "consolidation by ...", for the model card."""

    start: Start = "initial"
    """The policy that it starts from."""

    @property
    def reads_explored(self) -> bool:
        """Whether it reads the explored policy phi."""
        return self.start == "explored"

    @abstractmethod
    def plan(self) -> str:
        """What it does in a run, in figures, for the plan that a run logs."""

    def conflicts(self, policy: Policy, rounds: int) -> Iterator[str]:
        """Conflicts with the base policy, one message each.

        Args:
            rounds: of the run.
        """
        yield from ()


class TrainedConsolidation(Consolidation, PolicyModule):
    """A consolidation by optimizer steps.

    Args:
        rollouts_per_update: mini-batch size of an optimizer step, rollouts.
    """

    def __init__(self, *, rollouts_per_update: PositiveInt = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rollouts_per_update = rollouts_per_update

    @property
    @abstractmethod
    def keeps_copy(self) -> bool:
        """Whether it keeps a copy of the trained weights beside the policy, for the memory plan."""
