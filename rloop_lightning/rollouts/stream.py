"""The training data of a phase, as loaders that Lightning can checkpoint at any batch.

    RolloutStream   rollout steps, generated with the current policy when Lightning requests the next one
    ExpertStream    mini-batches of the expert set

Both have a length, so Lightning does not prefetch. A prefetched rollout step would come from an outdated policy.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import torch

from rloop_lightning.batching import collate
from rloop_lightning.errors import RunFault
from rloop_lightning.rollouts.listener import StreamListener
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost
from rloop_lightning.seeds import derive_seed
from rloop_lightning.types import Group, Problem, Rollout, RolloutBatch, RolloutStep, SamplingParams

_log = logging.getLogger(__name__)

OnTooFewGroups = Literal["end_phase", "train", "stop"]

# Request slightly more groups than needed: another engine call costs more than a few spare groups.
_HEADROOM = 1.1
# If few groups are kept, the estimated share is unreliable. This bounds the groups per engine call.
_MOST_STEPS_PER_CALL = 4


class Explorer(Protocol):
    """What a stream needs from an algorithm."""

    max_generation_batches: int

    def keep_group(self, group: Group) -> bool: ...

    def replayed(self, groups: Sequence[Group], sampling: SamplingParams) -> Sequence[Group]: ...

    def make_batch(self, groups: Sequence[Group], sampling: SamplingParams) -> RolloutBatch: ...


class NotEnoughGroupsError(RunFault):
    """Dynamic sampling reached its limit before it had enough groups for a rollout step.

    Args:
        metrics: the metrics of that step.
    """

    def __init__(self, message: str, metrics: Mapping[str, float] = MappingProxyType({})) -> None:
        super().__init__(message)
        self.metrics = metrics


class RolloutStream:
    """The rollout steps of one exploration.

    A step depends only on the policy's weights and on (seed, position), so a resumed run repeats it exactly.

    Args:
        problems: the training set; each pass over it has a new seeded order.
        problems_per_step: P, groups in the batch of a step.
        rollouts_per_problem: G, rollouts per group.
        steps: rollout steps in the phase.
        tokens: generated completion tokens at which the phase ends, after the step that reaches them; None is no limit.
        seed: seed of the problem order and of all sampling.
        on_too_few_groups: what to do if dynamic sampling reaches its limit before it has P groups: end the phase, train
            on the groups it has, or raise an error. With no group at all, `train` ends the phase.
        listeners: follow the sampling.

    Attributes:
        shortage: why the phase ended early, or was short of groups; empty if it was not.
        unused: the groups of the step that ended the phase. No step trains on them.
        newest: the metrics of the newest sampled step, including one that had too few groups to train on.
    """

    def __init__(
        self,
        sampler: GroupSampler,
        explorer: Explorer,
        problems: Sequence[Problem],
        *,
        problems_per_step: int,
        rollouts_per_problem: int,
        steps: int,
        seed: int,
        tokens: int | None = None,
        on_too_few_groups: OnTooFewGroups = "end_phase",
        listeners: Sequence[StreamListener] = (),
    ) -> None:
        self.sampler = sampler
        self.explorer = explorer
        self.problems = problems
        self.problems_per_step = problems_per_step
        self.rollouts_per_problem = rollouts_per_problem
        self.steps = steps
        self.tokens = tokens
        self.seed = seed
        self.on_too_few_groups = on_too_few_groups
        self.shortage = ""
        self.unused: tuple[Group, ...] = ()
        self.listeners = listeners
        self.newest: Mapping[str, float] = {}
        self.position = 0  # rollout steps yielded so far
        self.drawn = 0  # problems drawn so far, over all passes
        self.share_kept = 1.0  # share of the latest groups that were kept; decides how many to request
        self.cost = SamplingCost()

    def __len__(self) -> int:
        return self.steps

    @property
    def tokens_spent(self) -> bool:
        """Whether the phase has generated its tokens."""
        return self.tokens is not None and self.cost.tokens >= self.tokens

    def __iter__(self) -> Iterator[RolloutStep]:
        while self.position < self.steps and not self.tokens_spent:
            step = self._generate_step()
            if step is None:
                return
            self.position += 1
            yield step

    def state_dict(self) -> dict[str, Any]:
        """The stream's position, which Lightning saves in checkpoints."""
        return {
            "position": self.position,
            "drawn": self.drawn,
            "share_kept": self.share_kept,
            "cost": asdict(self.cost),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        self.drawn = state["drawn"]
        self.share_kept = state["share_kept"]
        self.cost = SamplingCost(**state["cost"])

    def _generate_step(self) -> RolloutStep | None:
        """Sample until enough groups are kept. None if there are too few, which ends the phase.

        Each engine call requests as many groups as should suffice.
        """
        generated: list[Group] = []
        kept: list[Group] = []
        cost = SamplingCost()
        self.sampler.reward.metrics()  # discards the counts of an evaluation
        most = self.problems_per_step * self.explorer.max_generation_batches
        while (missing := self.problems_per_step - len(kept)) > 0 and len(generated) < most:
            wanted = missing if self.share_kept == 1 else math.ceil(_HEADROOM * missing / self.share_kept)
            wanted = min(wanted, _MOST_STEPS_PER_CALL * self.problems_per_step, most - len(generated))
            for listener in self.listeners:
                listener.sampling(
                    kept=len(kept), needed=self.problems_per_step, drawn=len(generated), tokens=cost.tokens
                )
            sampling = self.sampler.engine.sampling(derive_seed(self.seed, self.position, len(generated)))
            groups = self.sampler.sample(self._draw(wanted), self.rollouts_per_problem, sampling, cost)
            generated += groups
            kept += [group for group in groups if self.explorer.keep_group(group)]
            self.share_kept = max(len(kept), 1) / len(generated)
        self._add_cost(cost)
        self._measure(generated, kept, cost)
        if missing > 0 and self._ends_with(kept, generated):
            return None
        trained = self.explorer.replayed(kept[: self.problems_per_step], sampling)
        batch = self.explorer.make_batch(trained, sampling)
        rollouts = tuple(rollout for group in trained for rollout in group.rollouts)
        return RolloutStep(self.position, tuple(generated), batch, self.newest, rollouts)

    def _measure(self, generated: Sequence[Group], kept: Sequence[Group], cost: SamplingCost) -> None:
        """Compute the metrics of the sampled step, and tell the listeners."""
        counts = {f"reward/{name}": value for name, value in self.sampler.reward.metrics().items()}
        self.newest = {**_step_metrics(generated, kept, min(len(kept), self.problems_per_step), cost), **counts}
        for listener in self.listeners:
            listener.sampled(self.position, generated, self.newest)

    def _ends_with(self, kept: Sequence[Group], generated: Sequence[Group]) -> bool:
        """Whether the phase ends here, where only these groups were kept.

        Raises:
            NotEnoughGroupsError: the run should stop.
        """
        self.shortage = self._too_few(len(kept), len(generated))
        if self.on_too_few_groups == "stop":
            raise NotEnoughGroupsError(self.shortage, self.newest)
        if self.on_too_few_groups == "train" and kept:
            _log.warning(f"{self.shortage}; it trains on {len(kept)}")
            return False
        self.unused = tuple(generated)
        return True

    def _too_few(self, kept: int, generated: int) -> str:
        return (
            f"rollout step {self.position + 1}: only {kept} of {generated} problems gave a group with both right and "
            f"wrong rollouts; the step needs {self.problems_per_step}"
        )

    def _draw(self, count: int) -> list[Problem]:
        """The next problems. Each pass over the training set has its own order."""
        drawn = []
        for number in range(self.drawn, self.drawn + count):
            epoch, place = divmod(number, len(self.problems))
            if place == 0 or number == self.drawn:
                order = np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(len(self.problems))
            drawn.append(self.problems[order[place]])
        self.drawn += count
        return drawn

    def _add_cost(self, cost: SamplingCost) -> None:
        for name, value in asdict(cost).items():
            setattr(self.cost, name, getattr(self.cost, name) + value)


class ExpertStream:
    """Mini-batches of the expert set for `epochs` passes, each in a new seeded order.

    Args:
        rollouts: the expert set.
        weights: the weight of each rollout in the loss.
        rollouts_per_update: rollouts in a mini-batch; the last one of a pass may have fewer.
    """

    def __init__(
        self,
        rollouts: Sequence[Rollout],
        weights: Sequence[float],
        *,
        rollouts_per_update: int,
        epochs: int,
        seed: int,
    ) -> None:
        self.rollouts = rollouts
        self.weights = np.asarray(weights, dtype=np.float32)
        self.rollouts_per_update = rollouts_per_update
        self.epochs = epochs
        self.seed = seed
        self.position = 0  # mini-batches yielded so far

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(len(self.rollouts) / self.rollouts_per_update)

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch

    def __iter__(self) -> Iterator[RolloutBatch]:
        while self.position < len(self):
            epoch, place = divmod(self.position, self.batches_per_epoch)
            order = np.random.default_rng(derive_seed(self.seed, "expert", epoch)).permutation(len(self.rollouts))
            rows = order[place * self.rollouts_per_update : (place + 1) * self.rollouts_per_update]
            self.position += 1
            yield replace(collate([self.rollouts[i] for i in rows], self.weights[rows]), rows=torch.from_numpy(rows))

    def state_dict(self) -> dict[str, Any]:
        """The stream's position, which Lightning saves in checkpoints."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def _step_metrics(
    generated: Sequence[Group], kept: Sequence[Group], trained: int, cost: SamplingCost
) -> dict[str, float]:
    """Metrics of a rollout step, over all its rollouts, including those that are not trained on."""
    rollouts = [rollout for group in generated for rollout in group.rollouts]
    parts = rollouts[0].reward_parts
    return {
        **{f"reward/{name}_mean": float(np.mean([r.reward_parts[name] for r in rollouts])) for name in parts},
        "rollout/reward_mean": float(np.mean([rollout.reward for rollout in rollouts])),
        "rollout/success_rate": float(np.mean([rollout.success for rollout in rollouts])),
        "rollout/solved_rate": float(np.mean([group.success_count > 0 for group in generated])),
        "rollout/all_right_rate": float(np.mean([group.success_count == len(group.rollouts) for group in generated])),
        "rollout/kept_rate": len(kept) / len(generated),
        "rollout/trained_groups": float(trained),
        "rollout/length_tokens": float(np.mean([rollout.length for rollout in rollouts])),
        "rollout/truncated_rate": float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        "rollout/generated_rollouts": float(cost.rollouts),
        "rollout/generated_tokens": float(cost.tokens),
        "time/generate_s": cost.generate_s,
        "time/reward_s": cost.reward_s,
    }
