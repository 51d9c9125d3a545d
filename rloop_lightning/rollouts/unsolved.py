"""Training on unsolved problems alone: which problems had no success so far, or too few.

counts = SuccessCounts([problem.id for problem in problems])
counts.add(group)                                   # in the order in which groups are sampled
counts.is_unsolved("problem-7", below=0.0)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from rloop_lightning.types import Group

CountedOver = Literal["round", "run"]


@dataclass(frozen=True)
class UnsolvedOnly:
    """Whether to train on groups of unsolved problems alone (BBG, arXiv 2606.15455).

    The paper's abstract restricts updates to problems with zero observed success. What counts as observed is ours: a
    problem's rollouts of rollout steps before the group, in the order of sampling, and in the group's own step those
    that were sampled before it. The paper's Bayesian gate is not this rule.

    Args:
        enabled: whether the rule is on.
        below: a problem whose success rate so far is below this is unsolved too (fraction); 0 takes those without a
            success alone.
        over: what is counted: the `round`'s exploration, or the whole `run` so far, with all rollouts of the pools of
            earlier rounds.
    """

    enabled: bool = False
    below: float = 0.0
    over: CountedOver = "round"

    def faults(self) -> Iterator[tuple[str, str, object]]:
        """Settings of a rule that is off: the field, the error, its value."""
        if self.enabled:
            return
        if self.below:
            yield "unsolved_below", "needs --algo.unsolved_only true", self.below
        if self.over != "round":
            yield "unsolved_over", "needs --algo.unsolved_only true", self.over


class SuccessCounts:
    """The rollouts and successes of each problem so far.

    Args:
        problem_ids: those of the training set.
    """

    def __init__(self, problem_ids: Sequence[str]) -> None:
        self._places = {problem_id: place for place, problem_id in enumerate(problem_ids)}
        self._rollouts = np.zeros(len(problem_ids), dtype=np.int64)
        self._successes = np.zeros(len(problem_ids), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, group: Group) -> None:
        """Count a group that was sampled."""
        place = self._places[group.problem.id]
        self._rollouts[place] += len(group.rollouts)
        self._successes[place] += group.success_count

    def add_pools(self, counts: pa.Table) -> None:
        """Count the rollouts of pools, from `count_rollouts`, without problems that are not in the training set."""
        columns = (counts[name].to_pylist() for name in ("problem_id", "rollouts", "successes"))
        for problem_id, rollouts, successes in zip(*columns, strict=True):
            if (place := self._places.get(problem_id)) is not None:
                self._rollouts[place] += rollouts
                self._successes[place] += successes

    def is_unsolved(self, problem_id: str, below: float) -> bool:
        """Whether a problem had no success so far, or a success rate below a fraction."""
        place = self._places[problem_id]
        return bool(self._mask(below, slice(place, place + 1))[0])

    def unsolved(self, below: float) -> int:
        """The number of unsolved problems."""
        return int(self._mask(below, slice(None)).sum())

    def _mask(self, below: float, places: slice) -> np.ndarray:
        successes = self._successes[places]
        # The quotient is exact where the rate is the threshold; the product 0.28 * 25 is above 7.
        return (successes == 0) | (successes / np.maximum(self._rollouts[places], 1) < below)

    def state_dict(self) -> dict[str, Any]:
        """The counts [P], in the order of the training set."""
        return {
            "rollouts": torch.from_numpy(self._rollouts.copy()),
            "successes": torch.from_numpy(self._successes.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rollouts = state["rollouts"].numpy().copy()
        self._successes = state["successes"].numpy().copy()
