"""Experience replay: DAPO on new rollouts and stored rollouts of the same problems (RLEP, RePO, ExGRPO)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.errors import RunFault
from rloop_lightning.model.policy import Policy
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.replay_buffer import ReplayBuffer, Selection, StoredRollout, shard_fault
from rloop_lightning.seeds import derive_seed
from rloop_lightning.system.fields import ClosedUnitInterval, LeftOpenUnitInterval, NonNegativeInt, PositiveInt
from rloop_lightning.types import Group, Rollout, RolloutBatch, SamplingParams

_log = logging.getLogger(__name__)


class Replay(DAPO):
    """Adds stored rollouts of the same problems to a rollout step. Their old logprobs are their sampling logprobs.

    The defaults are RLEP's (arXiv 2507.07451): two stored successes join their problem's group. For RePO (arXiv
    2506.09340), set `replay_advantages split`, `replay_successes_only false` and one of its selections. For ExGRPO
    (arXiv 2510.02245), set `replay_per_problem 1`, `replay_share 0.5`, `replay_selection low-entropy`,
    `replay_buckets true` and `replay_start_success_rate 0.35`. Unlike in the papers, the stream chooses the problems
    of a step.

    Args:
        replay_per_problem: M, stored rollouts added per problem; a problem with fewer stored gets none; 0 is DAPO.
        replay_share: largest share of a step's problems that get stored rollouts, at least one problem.
        replay_selection: which stored rollouts of a problem to add: the most `recent`, `random` ones, those with
            `low-entropy`, or those with `max-variance` of rewards.
        replay_buckets: sample problems by their number of successes, weighted by a normal density around half the group
            size with standard deviation 1; exclude problems that are all right or all wrong.
        replay_advantages: compute advantages of new and stored rollouts together (`joint`) or separately (`split`).
        replay_successes_only: store successes only.
        replay_start_success_rate: start replay once this share of a rollout step's rollouts succeeded.
        replay_stored_per_problem: distinct rollouts stored per problem, the newest ones (RePO: 16).
        replay_pool: replay from another run: its folder, or one of its pools; null replays from this run.
    """

    def __init__(
        self,
        *,
        replay_per_problem: NonNegativeInt = 2,
        replay_share: LeftOpenUnitInterval = 1.0,
        replay_selection: Selection = "random",
        replay_buckets: bool = False,
        replay_advantages: Literal["joint", "split"] = "joint",
        replay_successes_only: bool = True,
        replay_start_success_rate: ClosedUnitInterval = 0.0,
        replay_stored_per_problem: PositiveInt = 16,
        replay_pool: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.replay_per_problem = replay_per_problem
        self.replay_share = replay_share
        self.replay_selection = replay_selection
        self.replay_buckets = replay_buckets
        self.replay_advantages = replay_advantages
        self.replay_start_success_rate = replay_start_success_rate
        self.replay_pool = replay_pool
        self.replay_pools = None if replay_pool is None else pools_of(Path(replay_pool).expanduser())
        self.buffer = ReplayBuffer(successes_only=replay_successes_only, per_problem=replay_stored_per_problem)
        self._check(replay_successes_only, replay_stored_per_problem, replay_pool)

    def _check(self, successes_only: bool, stored: int, pool: str | None) -> None:
        self.require(
            stored >= self.replay_per_problem,
            "replay_stored_per_problem",
            f"must be at least --algo.replay_per_problem {self.replay_per_problem}",
            stored,
        )
        apart = self.replay_advantages == "split"
        self.require(
            not (apart and successes_only),
            "replay_advantages",
            "apart are all 0 where only successes are stored; set --algo.replay_successes_only false",
            "split",
        )
        self.require(
            not apart or self.replay_per_problem != 1, "replay_per_problem", "must be >= 2 with split advantages", 1
        )
        self.require(
            not (self.replay_selection == "max-variance" and successes_only),
            "replay_selection",
            "has no variance where only successes are stored; set --algo.replay_successes_only false",
            "max-variance",
        )
        self.require(self.replay_pools != [], "replay_pool", "must be a run or a pool with shards", pool)
        for fault in filter(None, map(shard_fault, self._foreign_shards())):
            self.refuse("replay_pool", f"can't be replayed: {fault}", pool)
        rate = self.replay_start_success_rate
        self.require(pool is None or rate == 0, "replay_start_success_rate", "must be 0 with --algo.replay_pool", rate)

    def conflicts(self, policy: Policy, prompt_lengths: Sequence[tuple[str, int]]) -> Iterator[str]:
        """Also, that a pool of another run has nothing to replay. Reads it: only the rollouts tell which are distinct.

        Raises:
            RunFault: a shard can't be read or is damaged.
        """
        yield from super().conflicts(policy, prompt_lengths)
        if self.replay_pools is None or self.replay_per_problem == 0:
            return
        found = copy.deepcopy(self.buffer)  # each round reads its own
        found.read(self.replay_pools)
        counts = [found.count(problem, policy.context_tokens - length) for problem, length in prompt_lengths]
        enough = sum(count >= self.replay_per_problem for count in counts)
        what = "successes" if self.buffer.successes_only else "rollouts"
        pool, least = f"--algo.replay_pool {self.replay_pool}", self.replay_per_problem
        if enough:
            _log.info(f"{pool}: {enough:,} of {len(counts):,} problems have at least {least} {what} to replay")
            return
        most = max(counts, default=0)
        fewest = 2 if self.replay_advantages == "split" else 1
        lower = f", or set --algo.replay_per_problem to at most {most}" if most >= fewest else ""
        yield (
            f"{pool}: none of the {len(counts):,} problems of the training set has {least} distinct {what} there that "
            f"fit into the policy's context, so nothing would be replayed; take a pool of the same problems{lower}"
        )

    @property
    def trains_on_stored(self) -> bool:
        return self.replay_per_problem > 0

    def _foreign_shards(self) -> list[Path]:
        return [shard for pool in self.replay_pools or [] for shard in RolloutPool(pool).shards()]

    def setup(self, stage: str) -> None:
        """Read the pools of another run, if `replay_pool` is set.

        Raises:
            RunFault: they contain token ids beyond the policy's vocabulary.
        """
        super().setup(stage)
        if self.replay_pools is None or self.replay_per_problem == 0:
            return
        self.buffer.read(self.replay_pools)
        vocabulary = self.policy.model.config.get_text_config().vocab_size
        if self.buffer.largest_token >= vocabulary:
            raise RunFault(
                f"--algo.replay_pool {self.replay_pools[0]}: token {self.buffer.largest_token} is beyond the policy's "
                f"{vocabulary}; these rollouts come from another tokenizer, take a pool of this policy's"
            )

    def replayed(self, groups: Sequence[Group], sampling: SamplingParams) -> Sequence[Group]:
        """The groups with stored rollouts added; with split advantages, as a separate group after each group.

        Mini-batches take groups in order, so each has a similar share of stored rollouts.
        """
        if self.replay_per_problem == 0:
            return groups
        self.buffer.read(self.pools if self.replay_pools is None else self.replay_pools)
        if not len(self.buffer) or self.buffer.best_success_rate < self.replay_start_success_rate:
            return groups
        rng = np.random.default_rng(derive_seed(sampling.seed, "replay"))
        mixed: list[list[Group]] = [[group] for group in groups]
        for number in self._choose(groups, rng):
            group = groups[number]
            stored = self.buffer.select(
                group.problem.id, self.replay_per_problem, self.replay_selection, rng, self._room(group)
            )
            again = tuple(_again(rollout, group) for rollout in stored)
            if self.replay_advantages == "joint":
                mixed[number] = [Group(group.problem, group.rollouts + again)]
            else:
                mixed[number].append(Group(group.problem, again))
        return [group for several in mixed for group in several]

    def _choose(self, groups: Sequence[Group], rng: np.random.Generator) -> list[int]:
        """The indices of the groups that get stored rollouts, in order. Only groups with enough stored rollouts do."""
        sizes = np.array([len(group.rollouts) for group in groups])
        successes = np.array([group.success_count for group in groups])
        stored = np.array([self.buffer.count(group.problem.id, self._room(group)) for group in groups])
        weights = (stored >= self.replay_per_problem).astype(float)
        if self.replay_buckets:
            weights *= np.exp(-((successes - sizes / 2) ** 2) / 2) * ((successes > 0) & (successes < sizes))
        count = min(max(1, int(self.replay_share * len(groups))), int(np.count_nonzero(weights)))
        if count == 0:
            return []
        return sorted(rng.choice(len(groups), size=count, replace=False, p=weights / weights.sum()).tolist())

    def _room(self, group: Group) -> int:
        """The most tokens of a completion that fits into the policy's context after a group's prompt."""
        return self.policy.context_tokens - len(group.rollouts[0].prompt_ids)

    def prepare(self, batch: RolloutBatch) -> RolloutBatch:
        self.record({"replay/share": batch.replayed.double().mean(), "replay/stored": float(len(self.buffer))})
        return super().prepare(batch)


def pools_of(folder: Path) -> list[Path]:
    """The pools in a run folder, or the folder itself if it is a pool; empty if it is neither."""
    pools = [pool for pool in sorted(folder.glob("round-*/pool")) if RolloutPool(pool).shards()]
    return pools or ([folder] if RolloutPool(folder).shards() else [])


def _again(stored: StoredRollout, group: Group) -> Rollout:
    """A stored rollout of the group's problem, as a rollout to train on."""
    return Rollout(
        problem_id=group.problem.id,
        prompt_ids=group.rollouts[0].prompt_ids,
        completion_ids=stored.completion_ids,
        sampling_logprobs=stored.sampling_logprobs,
        text="",
        finish_reason=stored.finish_reason,
        reward=stored.reward,
        success=stored.success,
        replayed=True,
    )
