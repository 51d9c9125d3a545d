"""A plain function as a reward: `rloop-fit --reward my_module.my_function`, or `train(reward=my_function)`.

def right(problems, completions):
    return [float(text.strip() == problem.answer) for problem, text in zip(problems, completions)]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from rloop_lightning.errors import RunFault
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.foreign import called
from rloop_lightning.system.imports import import_object, import_path, unnamed
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Problem

RewardFunction = Callable[[list[Problem], list[str]], Sequence[float]]
"""(problems, completions) -> one number for each completion; completions[i] answers problems[i]."""


class FunctionReward(Reward):
    """The reward that a function gives. A rollout is a success if its reward is at least `success_threshold`.

    Args:
        function: `module.function`, or the function itself. It gets two lists of the same length, `Problem` objects
            (prompt as the policy sees it, answer, metadata) and completion texts, and returns a finite number for each.
        success_threshold: smallest reward of a success.

    Raises:
        ValueError: the function can't be imported, or can't be called.
    """

    def __init__(self, function: str | RewardFunction, *, success_threshold: float = 1.0) -> None:
        super().__init__(success_threshold)
        try:
            self.function = import_object(function) if isinstance(function, str) else function
        except ValueError as error:
            raise ValueError(f"--reward.function: {error}") from error
        if not callable(self.function):
            raise ValueError(f"--reward.function: {function!r} is no function, it is a {type(self.function).__name__}")
        self.name = function if isinstance(function, str) else import_path(function) or unnamed(function)

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        """Rewards [B].

        Raises:
            RunFault: the function raises, or does not return one finite number for each completion.
        """
        values = _plain(called(self.name, lambda: self.function(list(problems), list(texts))))
        if not isinstance(values, list | tuple):
            raise self._fault(f"must return a list with one number for each completion, got {type(values).__name__}")
        if len(values) != len(texts):
            raise self._fault(f"must return one number for each of {len(texts)} completions, got {len(values)}")
        rewards = []
        for value, problem in zip(map(_plain, values), problems, strict=True):
            if not isinstance(value, Real) or not math.isfinite(value):
                shown = one_line(repr(value), limit=80)
                raise self._fault(f"must return finite numbers, got {shown} for a completion of {one_line(problem.id)}")
            rewards.append(float(value))
        return rewards

    def _fault(self, what: str) -> RunFault:
        return RunFault(f"--reward {self.name}: the function {what}")


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists or numbers; all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value
