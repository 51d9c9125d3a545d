"""What every reward does: completions in, numbers out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from rloop_lightning.types import Problem


class Reward(ABC):
    """Scores completions against gold answers with any real number; `success` is `reward >= success_threshold`.

    Args:
        success_threshold: the reward from which on a rollout counts as a success.
    """

    def __init__(self, success_threshold: float = 1.0) -> None:
        self.success_threshold = success_threshold

    @abstractmethod
    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        """Rewards [B]: `texts[i]` as a completion of `problems[i]`, in order. Never raises on what a policy writes."""

    def unusable(self, problems: Sequence[Problem]) -> list[str]:
        """One message, naming the id, for each problem whose gold answer this reward can't read."""
        return []
