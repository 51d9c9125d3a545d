"""Sampling that the ranks of a job share: each generates and scores its part of the problems.

The groups are those of one process, in the same order: a rollout depends on its place in the request, not on the rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost
from rloop_lightning.system.ranks import Ranks
from rloop_lightning.types import Group, Problem, SamplingParams


@dataclass(frozen=True)
class Sync:
    """Tells the ranks to update their engines to the current weights."""

    def serve(self, sampler: RankSampler, ranks: Ranks) -> None:
        sampler.sync()


@dataclass(frozen=True)
class Generate:
    """Tells the ranks to generate and score their shares of a request."""

    problems: tuple[Problem, ...]
    n: int
    sampling: SamplingParams

    def serve(self, sampler: RankSampler, ranks: Ranks) -> None:
        cost = SamplingCost()
        with _progress_of(sampler.engine, lambda tokens, rollouts: ranks.beat()):
            try:
                share = ranks.share(len(self.problems))
                groups = sampler.generate_share(self.problems, self.n, self.sampling, cost, share)
                ranks.gather(_Part(groups, cost, sampler.reward_metrics()))
            except Exception as error:  # the leader raises it, whatever it is
                ranks.gather(ranks.fault(error))


@dataclass(frozen=True)
class _Part:
    """What a rank generated of a request."""

    groups: Sequence[Group]
    cost: SamplingCost
    reward_metrics: dict[str, float]


class RankSampler(GroupSampler):
    """The sampler of a rank.

    Args:
        generates: whether the rank's engine generates; otherwise that of rank 0 does for all.
    """

    def __init__(self, engine: RolloutEngine, reward: Reward, *, generates: bool) -> None:
        super().__init__(engine, reward)
        self.generates = generates

    def bind(self, policy: Policy) -> None:
        if self.generates:
            self.engine.bind(policy)

    def sync(self) -> None:
        if self.generates:
            self.engine.sync()


class SharedSampler(RankSampler):
    """The leader's sampler: its `generate` gives each rank a share. The others serve the messages.

    Args:
        shares: whether the other ranks generate, too.
    """

    def __init__(self, engine: RolloutEngine, reward: Reward, ranks: Ranks, *, shares: bool) -> None:
        super().__init__(engine, reward, generates=True)
        self.ranks = ranks
        self.shares = shares
        self._others_metrics: Counter[str] = Counter()

    def sync(self) -> None:
        self.ranks.send(Sync())
        super().sync()

    def generate(
        self, problems: Sequence[Problem], n: int, sampling: SamplingParams, cost: SamplingCost
    ) -> list[Group]:
        if not self.shares:
            return super().generate(problems, n, sampling, cost)
        self.ranks.send(Generate(tuple(problems), n, sampling))
        began, own = perf_counter(), SamplingCost()
        share = self.ranks.share(len(problems))
        with _progress_of(self.engine, self._of_all(len(problems) / max(share[1] - share[0], 1))):
            groups = self.generate_share(problems, n, sampling, own, share)
        parts = self.ranks.gather(_Part(groups, own, {}))
        for part in parts:
            self._others_metrics.update(part.reward_metrics)
            cost.rollouts += part.cost.rollouts
            cost.tokens += part.cost.tokens
        cost.reward_s += own.reward_s
        cost.generate_s += perf_counter() - began - own.reward_s  # with the time that it waited for the others
        return [group for part in parts for group in part.groups]

    def reward_metrics(self) -> dict[str, float]:
        counts, self._others_metrics = self._others_metrics, Counter()
        return {name: count + counts[name] for name, count in super().reward_metrics().items()}

    def _of_all(self, factor: float) -> Callable[[int, int], None]:
        """Reports progress on the own share as progress on the whole request."""
        told, done = self.engine.on_progress, [0, 0]

        def progress(*counts: int) -> None:
            self.ranks.beat()
            if told is not None:
                before = [round(factor * count) for count in done]
                done[:] = (one + count for one, count in zip(done, counts, strict=True))
                told(*(round(factor * count) - one for count, one in zip(done, before, strict=True)))

        return progress


@contextmanager
def _progress_of(engine: RolloutEngine, progress: Callable[[int, int], None]) -> Iterator[None]:
    told = engine.on_progress
    engine.on_progress = progress
    try:
        yield
    finally:
        engine.on_progress = told
