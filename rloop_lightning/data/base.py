"""What every source of problems gives: a training set and named evaluation sets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from rloop_lightning.types import Problem


class ProblemSource(ABC):
    """Problem sets, the same in every run. Cheap to construct: problems are made or read when they are asked for."""

    @abstractmethod
    def train(self) -> Sequence[Problem]:
        """The problems to train on, ids unique."""

    @abstractmethod
    def evaluation(self) -> Mapping[str, Sequence[Problem]]:
        """Held-out sets by name; `validation`, where there is one, is what a policy may be selected on."""
