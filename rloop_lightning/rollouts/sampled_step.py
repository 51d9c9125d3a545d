"""The groups of a rollout step, from when they are sampled until the step trains on them.

A run that samples ahead of its updates keeps such steps in its checkpoints: as tensors, texts and numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from rloop_lightning.rollouts.sampler import SamplingCost
from rloop_lightning.types import Group, Problem, Rollout, SamplingParams

_NUMBERS = {"reward": torch.float64, "success": torch.bool}
_TEXTS = ("text", "finish_reason", "check_fault")
_ARRAYS = tuple(name for name, type_ in Rollout.__annotations__.items() if "ndarray" in type_ and name != "prompt_ids")
_IDS = ("completion_ids",)  # stored as int32


@dataclass(frozen=True)
class SampledStep:
    """A sampled rollout step.

    Args:
        index: rollout step inside the phase, from 0.
        version: the rollout steps that the policy had trained on when the sampling began.
        groups: every generated group.
        kept: which of them can be trained on.
        sampling: how the last of them were sampled.
        metrics: `rollout/...`, `reward/...` and `time/...`.
        cost: what the sampling cost.
        in_steps: whether the rollouts' `versions` are rollout steps that the policy had trained on; else they are the
            engine's numbers.
        wanted: the groups that the step was to train on, which a resume may change for later ones; 0 if unknown.
    """

    index: int
    version: int
    groups: tuple[Group, ...]
    kept: tuple[bool, ...]
    sampling: SamplingParams
    metrics: Mapping[str, float]
    cost: SamplingCost
    in_steps: bool = False
    wanted: int = 0

    @property
    def lag(self) -> float:
        """Rollout steps that the policy trains on between a token's sampling and this step, mean over all tokens."""
        found = [rollout.versions for group in self.groups for rollout in group.rollouts]
        return self.index - float(np.concatenate([versions for versions in found if versions is not None]).mean())

    def with_steps(self, steps: Mapping[int, int]) -> Self:
        """The step with versions in rollout steps, for every token.

        Args:
            steps: rollout steps by the engine's numbers. What it lacks, and what the engine did not number, has the
                weights that began the step.
        """
        if self.in_steps:
            return self
        groups = [
            replace(group, rollouts=tuple(replace(one, versions=self._steps_of(one, steps)) for one in group.rollouts))
            for group in self.groups
        ]
        return replace(self, groups=tuple(groups), in_steps=True)

    def _steps_of(self, rollout: Rollout, steps: Mapping[int, int]) -> np.ndarray:
        if rollout.versions is None:
            return np.full(rollout.length, self.version, dtype=np.int32)
        numbers, places = np.unique(rollout.versions, return_inverse=True)
        return np.array([steps.get(number, self.version) for number in numbers.tolist()], dtype=np.int32)[places]

    @property
    def kept_groups(self) -> list[Group]:
        return [group for group, kept in zip(self.groups, self.kept, strict=True) if kept]

    def state_dict(self) -> dict[str, Any]:
        """The step as tensors, texts and numbers."""
        rollouts = [rollout for group in self.groups for rollout in group.rollouts]
        return {
            "index": self.index,
            "version": self.version,
            "in_steps": self.in_steps,
            "wanted": self.wanted,
            "kept": list(self.kept),
            "sampling": {**asdict(self.sampling), "stop": list(self.sampling.stop)},
            "metrics": dict(self.metrics),
            "cost": asdict(self.cost),
            "problems": [group.problem.id for group in self.groups],
            "sizes": [len(group.rollouts) for group in self.groups],
            "prompt_ids": _joined([group.rollouts[0].prompt_ids.astype(np.int32) for group in self.groups]),
            "reward_parts": [dict(rollout.reward_parts) for rollout in rollouts],
            **{name: [getattr(rollout, name) for rollout in rollouts] for name in _TEXTS},
            **{
                name: torch.tensor([getattr(r, name) for r in rollouts], dtype=dtype)
                for name, dtype in _NUMBERS.items()
            },
            **{
                name: _joined([array.astype(np.int32) if name in _IDS else array for array in arrays])
                for name in _ARRAYS
                if (arrays := [getattr(rollout, name) for rollout in rollouts])[0] is not None
            },
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], problems: Mapping[str, Problem]) -> Self:
        """The step of a `state_dict`.

        Args:
            problems: the training set, by id.

        Raises:
            KeyError: a problem is not in the training set.
        """
        columns: dict[str, Sequence[Any]] = {
            "reward_parts": state["reward_parts"],
            **{name: state[name] for name in _TEXTS},
            **{name: state[name].tolist() for name in _NUMBERS},
            **{name: _split(state[name]) for name in _ARRAYS if name in state},
        }
        rows = iter([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])
        groups = []
        for id, size, prompt_ids in zip(state["problems"], state["sizes"], _split(state["prompt_ids"]), strict=True):
            prompt = prompt_ids.astype(np.int64)
            rollouts = tuple(_rollout(id, prompt, next(rows)) for _ in range(size))
            groups.append(Group(problems[id], rollouts))
        sampling = {**state["sampling"], "stop": tuple(state["sampling"]["stop"])}
        return cls(
            state["index"],
            state["version"],
            tuple(groups),
            tuple(state["kept"]),
            SamplingParams(**sampling),
            state["metrics"],
            SamplingCost(**state["cost"]),
            state["in_steps"],
            state.get("wanted", 0),  # checkpoints of earlier releases lack it
        )


def _rollout(problem_id: str, prompt_ids: np.ndarray, values: dict[str, Any]) -> Rollout:
    ids = {name: values[name].astype(np.int64) for name in _IDS}
    return Rollout(problem_id=problem_id, prompt_ids=prompt_ids, **{**values, **ids})


def _joined(arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    """Arrays that differ in their first length as one tensor."""
    return {"values": torch.from_numpy(np.concatenate(arrays)), "lengths": [len(array) for array in arrays]}


def _split(joined: Mapping[str, Any]) -> list[np.ndarray]:
    ends = np.cumsum(joined["lengths"])[:-1]
    return [array.copy() for array in np.split(joined["values"].numpy(), ends)]
