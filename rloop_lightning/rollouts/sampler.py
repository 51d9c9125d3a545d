"""Problems in, scored groups out: the engine and the reward as one step, with the time that each takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.rewards.base import Reward
from rloop_lightning.types import Group, Problem, SamplingParams


@dataclass
class SamplingCost:
    """What sampling has cost so far."""

    rollouts: int = 0
    tokens: int = 0
    generate_s: float = 0.0
    reward_s: float = 0.0


class GroupSampler:
    """Generates rollouts with the policy's current weights and has them scored."""

    def __init__(self, engine: RolloutEngine, reward: Reward) -> None:
        self.engine = engine
        self.reward = reward

    def sample(self, problems: Sequence[Problem], n: int, sampling: SamplingParams, cost: SamplingCost) -> list[Group]:
        """A group of n scored rollouts for each problem, in order; what it took is added to `cost`."""
        started = perf_counter()
        self.engine.sync()
        rollouts = self.engine.generate(problems, n, sampling)
        generated = perf_counter()
        owners = [problem for problem in problems for _ in range(n)]
        verdicts = self.reward(owners, [rollout.text for rollout in rollouts])
        scored = [
            replace(rollout, reward=verdict.reward, success=verdict.success, reward_parts=verdict.parts)
            for rollout, verdict in zip(rollouts, verdicts, strict=True)
        ]
        cost.rollouts += len(scored)
        cost.tokens += sum(rollout.length for rollout in scored)
        cost.generate_s += generated - started
        cost.reward_s += perf_counter() - generated
        return [Group(problem, tuple(scored[i * n : (i + 1) * n])) for i, problem in enumerate(problems)]
