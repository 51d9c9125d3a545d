"""Problems in, scored groups out: runs engine and reward, and measures the time of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from time import perf_counter

from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.foreign import score
from rloop_lightning.types import Group, Problem, Rollout, SamplingParams


@dataclass
class SamplingCost:
    """The accumulated cost of sampling."""

    rollouts: int = 0
    tokens: int = 0
    generate_s: float = 0.0
    reward_s: float = 0.0


class GroupSampler:
    """Generates rollouts and scores them.

    Attributes:
        turn: held by whoever uses engine and reward: an evaluation, or the sampling of a rollout step in a thread.
    """

    def __init__(self, engine: RolloutEngine, reward: Reward) -> None:
        self.engine = engine
        self.reward = reward
        self.turn = Lock()

    def bind(self, policy: Policy) -> None:
        """Sample with this policy from now on."""
        self.engine.bind(policy)

    def sync(self) -> None:
        """Update the engine to the policy's current weights."""
        self.engine.sync()

    def sample(self, problems: Sequence[Problem], n: int, sampling: SamplingParams, cost: SamplingCost) -> list[Group]:
        """Sample and score a group of n rollouts per problem with the policy's current weights, in order.

        Adds the cost to `cost`.
        """
        with self.turn:
            started = perf_counter()
            self.sync()
            cost.generate_s += perf_counter() - started
            return self.generate(problems, n, sampling, cost)

    def generate(
        self, problems: Sequence[Problem], n: int, sampling: SamplingParams, cost: SamplingCost
    ) -> list[Group]:
        """The groups of `sample`, with the weights that the engine has. The caller has the turn."""
        return self.generate_share(problems, n, sampling, cost, (0, len(problems)))

    def generate_share(
        self,
        problems: Sequence[Problem],
        n: int,
        sampling: SamplingParams,
        cost: SamplingCost,
        share: tuple[int, int],
    ) -> list[Group]:
        """The groups of the problems from share[0] to share[1], as in the request of all problems."""
        first, last = share
        started = perf_counter()
        asked = problems[:last]
        engine = self.engine
        rollouts = engine.generate_share(asked, n, sampling, first) if first else engine.generate(asked, n, sampling)
        cost.generate_s += perf_counter() - started
        return self._scored(problems[first:last], n, rollouts, cost)

    def reward_metrics(self) -> dict[str, float]:
        """The reward's counts since the last call (`Reward.metrics`)."""
        return self.reward.metrics()

    def sample_parts(
        self, problems: Sequence[Problem], n: int, sampling: SamplingParams, cost: SamplingCost, done: int = 0
    ) -> Iterator[list[Group]]:
        """The groups of `sample` in parts, without those of the first `done` problems (`RolloutEngine.generate_parts`).

        Adds the cost of each part to `cost`.
        """
        with self.turn:
            self.sync()
            started = perf_counter()
            for rollouts in self.engine.generate_parts(problems, n, sampling, done):
                cost.generate_s += perf_counter() - started
                end = done + len(rollouts) // n
                yield self._scored(problems[done:end], n, rollouts, cost)
                done, started = end, perf_counter()

    def _scored(
        self, problems: Sequence[Problem], n: int, rollouts: Sequence[Rollout], cost: SamplingCost
    ) -> list[Group]:
        """The rollouts, n of each problem, as groups with rewards."""
        started = perf_counter()
        owners = [problem for problem in problems for _ in range(n)]
        verdicts = score(self.reward, owners, [rollout.text for rollout in rollouts])
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
        cost.reward_s += perf_counter() - started
        return [Group(problem, tuple(scored[i * n : (i + 1) * n])) for i, problem in enumerate(problems)]
