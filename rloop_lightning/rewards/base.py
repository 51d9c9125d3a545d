"""What every reward does: completions in; rewards and successes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from rloop_lightning.types import Problem, Scored


class Reward(ABC):
    """Gives completions any real number as reward; `success` is `reward >= success_threshold`.

    A subclass writes `rewards`. One whose success is not a matter of a threshold overrides `__call__` too.

    Args:
        success_threshold: the reward from which on a rollout counts as a success.
    """

    def __init__(self, success_threshold: float = 1.0) -> None:
        self.success_threshold = success_threshold

    @abstractmethod
    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        """Rewards [B]: `texts[i]` as a completion of `problems[i]`, in order. Never raises on what a policy writes."""

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Scored]:
        """Reward, success and parts [B] of `texts[i]` as a completion of `problems[i]`, in order."""
        return [Scored(reward, reward >= self.success_threshold) for reward in self.rewards(problems, texts)]

    def metrics(self) -> dict[str, float]:
        """Counts since the last call, under names such as `timed_out`; a rollout step shows them as `reward/NAME`."""
        return {}

    def unusable(self, problems: Sequence[Problem]) -> Mapping[str, str]:
        """By its id, what is wrong with each problem whose gold answer this reward can't read; ids are unique."""
        return {}
