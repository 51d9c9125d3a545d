"""What rollouts are like: length and entropy of right and wrong ones apart, truncation, groups without a contrast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from rloop_lightning.types import Group

_KINDS = ("wrong", "right")


def group_shares(successes: Tensor, samples: Tensor | int) -> tuple[Tensor, Tensor]:
    """The share of groups whose rollouts are all right, and of those whose rollouts are all wrong.

    Such groups have equal rewards and hence zero advantage (arXiv 2503.14476, section 3.2). Groups without rollouts
    don't count. NaN if there is none.

    Args: successes [N], number of successes; samples [N] or a number, rollouts of each group. Returns two scalars.
    Raises ValueError if a count is out of range.
    """
    samples = torch.as_tensor(samples, device=successes.device).expand_as(successes)
    if torch.any((successes < 0) | (successes > samples)):
        raise ValueError("successes must be in 0 .. samples")
    filled = samples > 0
    total = filled.sum()
    return (filled & (successes == samples)).sum() / total, (filled & (successes == 0)).sum() / total


class RolloutOutcomes(Metric):
    """Length and entropy of right and wrong rollouts, truncated share, and shares of all-right and all-wrong groups.

    Lengths are averaged over rollouts. Entropies are averaged over tokens: the mean surprise (negative sampling
    logprob), which estimates the entropy of the sampling distribution. Rollouts that were replayed from a pool are left
    out, since another policy sampled them. `compute` returns NaN for what it saw no rollout of.
    """

    full_state_update = False
    rollouts: Tensor  # [2], wrong and right
    tokens: Tensor  # [2]
    surprise: Tensor  # [2], nats, summed over tokens
    truncated: Tensor  # rollouts
    groups: Tensor
    all_right: Tensor
    all_wrong: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("rollouts", "tokens"):
            self.add_state(name, torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("surprise", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("truncated", "groups", "all_right", "all_wrong"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, groups: Sequence[Group]) -> None:
        """Add groups."""
        fresh = [[rollout for rollout in group.rollouts if not rollout.replayed] for group in groups]
        fresh = [rollouts for rollouts in fresh if rollouts]
        rights = np.array([sum(rollout.success for rollout in rollouts) for rollouts in fresh])
        self.groups += len(fresh)
        self.all_right += int((rights == np.array([len(rollouts) for rollouts in fresh])).sum())
        self.all_wrong += int((rights == 0).sum())
        flat = [rollout for rollouts in fresh for rollout in rollouts]
        kinds = np.array([rollout.success for rollout in flat], dtype=np.int64)
        columns = {
            "rollouts": np.ones(len(flat)),
            "tokens": np.array([rollout.length for rollout in flat]),
            "surprise": np.array([-rollout.sampling_logprobs.sum(dtype=np.float64) for rollout in flat]),
        }
        for name, values in columns.items():
            state = getattr(self, name)
            state += torch.from_numpy(np.bincount(kinds, values, minlength=2)).to(state)
        self.truncated += sum(rollout.finish_reason == "length" for rollout in flat)

    def compute(self) -> dict[str, Tensor]:
        """Means by name: `length_right_tokens`, `entropy_wrong_nats`, `truncated_rate`, `all_right_rate`, ..."""
        metrics = {}
        for kind, name in enumerate(_KINDS):
            metrics[f"length_{name}_tokens"] = self.tokens[kind].double() / self.rollouts[kind]
            metrics[f"entropy_{name}_nats"] = self.surprise[kind] / self.tokens[kind]
        metrics["truncated_rate"] = self.truncated.double() / self.rollouts.sum()
        metrics["all_right_rate"] = self.all_right.double() / self.groups
        metrics["all_wrong_rate"] = self.all_wrong.double() / self.groups
        return metrics
