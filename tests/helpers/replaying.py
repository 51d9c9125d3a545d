"""Stored rollouts, groups that they join, and the algorithm that replays them; for the tests of replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from builders import make_group, make_policy, make_rollout

from rloop_lightning.algorithms.replay import Replay
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.types import Group, Rollout


def store(folder: Path, *rollouts: Rollout, step: int = 1) -> None:
    """Write them as the pool's shard of a rollout step."""
    groups = [make_group(rollout) for rollout in rollouts]
    RolloutPool(folder).write(f"step-{step:06d}", groups, round=0, rollout_step=step - 1, run_id="r")


def successes(problem: str, count: int, logprob: float = -2.0) -> list[Rollout]:
    """Stored rollouts that differ from each other and from those of `new_group`."""
    return [
        make_rollout(problem, (20, 10 + i, 1), prompt=(9, 9), reward=1.0, sampling_logprobs=[logprob - i, -1.0, -0.5])
        for i in range(count)
    ]


def new_group(problem: str = "a", right: int = 1, size: int = 4) -> Group:
    """A group as a rollout step generates it, whose first rollouts are right."""
    rollouts = [
        make_rollout(problem, (6 + g, 7, 1), prompt=(3, 4, 5), reward=float(g < right), sampling_logprobs=[-1.0] * 3)
        for g in range(size)
    ]
    return make_group(*rollouts)


def make_module(folder: Path, **settings: Any) -> Replay:
    """One update a step, from the pool in a folder, of the tiny policy with its context of 64 tokens."""
    module = Replay(**{"updates_per_step": 1, **settings})
    assert module.invalid() == []
    module.pools = [folder]
    module.policy = make_policy()
    return module
