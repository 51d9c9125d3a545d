"""Problems in, scored groups out: runs engine and reward, and measures the time of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.rewards.base import Reward
from rloop_lightning.types import Group, Problem, SamplingParams


@dataclass
class SamplingCost:
    """The accumulated cost of sampling."""

    rollouts: int = 0
    tokens: int = 0
    generate_s: float = 0.0
    reward_s: float = 0.0


class GroupSampler:
    """Generates rollouts with the policy's current weights and scores them."""

    def __init__(self, engine: RolloutEngine, reward: Reward) -> None:
        self.engine = engine
        self.reward = reward

    def sample(self, problems: Sequence[Problem], n: int, sampling: SamplingParams, cost: SamplingCost) -> list[Group]:
        """Sample and score a group of n rollouts per problem, in order. Adds the cost to `cost`."""
        started = perf_counter()
        self.engine.sync()
        rollouts = self.engine.generate(problems, n, sampling)
        generated = perf_counter()
        owners = [problem for problem in problems for _ in range(n)]
        verdicts = self.reward(owners, [rollout.text for rollout in rollouts])
        scored = [
            replace(
                rollout,
                reward=verdict.reward,
                success=verdict.success,
                check_fault=verdict.check_fault,
                reward_parts=verdict.parts,
            )
            for rollout, verdict in zip(rollouts, verdicts, strict=True)
        ]
        cost.rollouts += len(scored)
        cost.tokens += sum(rollout.length for rollout in scored)
        cost.generate_s += generated - started
        cost.reward_s += perf_counter() - generated
        return [Group(problem, tuple(scored[i * n : (i + 1) * n])) for i, problem in enumerate(problems)]
