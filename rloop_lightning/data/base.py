"""The interface of problem sources: a training set and named evaluation sets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from rloop_lightning.types import Message, Problem


class ProblemSource(ABC):
    """Problem sets, the same in every run. Construction is cheap: problems are generated or read on first use.

    Attributes:
        reward: short name or class path of the default reward for these problems.
        max_prompt_tokens: skip problems whose prompt, as the policy sees it, is longer; None keeps all.
        skip_unreadable: true skips problems whose gold answer the reward can't read; false refuses to start a run with
            them. None if the source has no such option.
        today: the date that chat templates see; None is the current one. A run sets the day on which it began, so that
            a resume renders the same prompts.
    """

    reward = "math"
    max_prompt_tokens: int | None = None
    skip_unreadable: bool | None = None
    today: date | None = None

    @abstractmethod
    def train(self) -> Sequence[Problem]:
        """The training set; ids are unique."""

    @abstractmethod
    def evaluation(self) -> Mapping[str, Sequence[Problem]]:
        """Held-out sets by name. Policies can be selected on the set `validation`, if there is one."""

    def render(self, problems: Sequence[Problem], tokenizer: Any) -> list[Problem]:
        """The problems with their prompts as the policy sees them, special tokens included. By default, as they are."""
        return list(problems)

    def messages(self, problem: Problem) -> tuple[Message, ...]:
        """The conversation that `render` makes a prompt of. By default the problem's context, and its text."""
        return (*problem.context, Message("user", problem.prompt))

    def notes(self) -> list[str]:
        """Notes on the sets that a run logs at its start."""
        return []
