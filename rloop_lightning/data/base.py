"""What every source of problems gives: a training set and named evaluation sets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from rloop_lightning.types import Problem


class ProblemSource(ABC):
    """Problem sets, the same in every run. Cheap to construct: problems are made or read when they are asked for.

    Attributes:
        reward: short name or class path of the reward that suits these problems, where the user names none.
        max_prompt_tokens: problems whose prompt is longer, as the policy sees it, are left out; None keeps all.
        skip_unreadable: whether problems are left out whose gold answer the reward can't read; else the run does not
            begin with them. None where the user has no such choice.
    """

    reward = "math"
    max_prompt_tokens: int | None = None
    skip_unreadable: bool | None = None

    @abstractmethod
    def train(self) -> Sequence[Problem]:
        """The problems to train on, ids unique."""

    @abstractmethod
    def evaluation(self) -> Mapping[str, Sequence[Problem]]:
        """Held-out sets by name; `validation`, where there is one, is what a policy may be selected on."""

    def render(self, problems: Sequence[Problem], tokenizer: Any) -> list[str]:
        """The prompts as the policy sees them, special tokens included; here, what the problems hold already."""
        return [problem.prompt for problem in problems]

    def notes(self) -> list[str]:
        """What a run should say about the sets when it begins."""
        return []
