"""The interface of rewards: completions in, rewards and successes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rloop_lightning.types import CheckFault, Problem, Scored

if TYPE_CHECKING:
    from rloop_lightning.rewards.verdict import GoldReading, Verdict


class Reward(ABC):
    """Scores completions. A reward is any real number, and `success` is `reward >= success_threshold`.

    Subclasses implement `rewards`. Override `__call__` too if success does not depend on a threshold.

    Args:
        success_threshold: smallest reward that counts as a success.
    """

    success_threshold: float = 1.0  # of a subclass whose own `__init__` does not call this one

    def __init__(self, success_threshold: float = 1.0) -> None:
        self.success_threshold = success_threshold

    @abstractmethod
    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        """Rewards [B] of `texts[i]` as a completion of `problems[i]`, in order. Must not raise on any completion."""

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Scored]:
        """Reward, success and parts [B] of `texts[i]` as a completion of `problems[i]`, in order."""
        rewards = self.rewards(problems, texts)
        faults = self.check_faults(problems, texts)
        return [
            Scored(reward, reward >= self.success_threshold, check_fault=fault)
            for reward, fault in zip(rewards, faults, strict=True)
        ]

    def check_faults(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[CheckFault]:
        """Why each check ended without a verdict [B], in order. Called with completions that `rewards` has scored."""
        return [""] * len(texts)

    def answers(self, texts: Sequence[str]) -> Sequence[str | None] | None:
        """The final answer of each completion [B], for maj@k; None for a completion without one.

        None in place of all answers if this reward does not know what an answer is: maj@k is then not measured.
        """
        return None

    def equal_answers(self, pairs: Sequence[tuple[str, str]]) -> Sequence[bool]:
        """Whether the two answers of each pair, of different text, are the same answer, in order."""
        return [False] * len(pairs)

    def metrics(self) -> dict[str, float]:
        """Counts since the last call, under names such as `timed_out`. A rollout step logs them as `reward/NAME`."""
        return {}

    def unusable(self, problems: Sequence[Problem]) -> Mapping[str, str]:
        """By problem id, why this reward can't read the gold answer; empty if it can read all. Ids are unique."""
        return {}

    def readings(self, golds: Sequence[str]) -> Sequence[GoldReading]:
        """How this reward reads each gold answer, in order, for reports; empty if it does not read them."""
        return ()

    def explain(self, problem: Problem, text: str) -> Verdict | None:
        """Why a completion is right or wrong, for reports; None if this reward can't tell."""
        return None

    def right_completions(self, problem: Problem) -> Mapping[str, str]:
        """Completions that state the gold answer, by a name for their form; at least one should be a success.

        `rloop-reward check` and --dry_run score them, to find a reward that never pays. Override it if a right
        completion looks otherwise. An empty mapping means that none is known.
        """
        return {
            "gold in a box": f"The answer is \\boxed{{{problem.answer}}}.",
            "gold after ####": f"#### {problem.answer}",
            "bare gold": problem.answer,
        }
