"""What several ranks send each other in a rollout step of an exploration, by arithmetic from the memory plan.

    for name, size in received(plan, own, work).items(): ...        # bytes that each rank receives

Collectives are counted as rings make them: of B bytes on N ranks, an all-gather and a reduce-scatter bring each rank
(N - 1) / N of B, and an all-reduce twice as much. Each rollout counts at its full length, as in the memory plan.

With shards, each micro-batch gathers all weights twice, layer by layer, for the forward and for the backward pass, and
sums its gradients over the ranks. A pass without gradients gathers them once. Copies of shards (`hsdp`) sum their
gradients for each micro-batch. Without shards, gradients are summed once an update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rloop_lightning.run.memory_plan import MemoryPlan
from rloop_lightning.run.plan_ranks import RankWeights


@dataclass(frozen=True)
class Work:
    """The micro-batches of a rollout step on each rank.

    Args:
        updates: optimizer steps.
        trained: micro-batches that are trained on, of all updates.
        scored: micro-batches of passes without gradients: old logprobs, and those of the reference policy.
    """

    updates: int
    trained: int
    scored: int

    @classmethod
    def of(cls, plan: MemoryPlan, algorithm: Any) -> Self:
        """The work of an exploration's rollout step, which trains on all its rollouts."""
        phase = plan.setup.phases[0]
        each = math.ceil(phase.per_update / plan.micro_batch(phase).rollouts)
        shares, passes = algorithm.updates_per_step, algorithm.passes
        penalised, in_reward = algorithm.kl.initial_beta > 0, algorithm.kl.place == "reward"
        old = shares if passes > 1 or (penalised and in_reward) else shares - 1
        reference = (shares if in_reward else passes * shares) if penalised else 0
        return cls(passes * shares, passes * shares * each, (old + reference) * each)


def received(plan: MemoryPlan, own: RankWeights, work: Work) -> Mapping[str, float]:
    """Bytes that each rank receives from the others in a rollout step, by what they are.

    Args:
        plan: of a rank.
        own: the weights of a rank.
        work: of a rollout step.
    """
    ranks = plan.ranks
    gradients = own.trained * plan.gradient_itemsize
    if ranks.shards == 1:
        return {"gradients, all-reduce": work.updates * 2 * _others(ranks.number) * gradients}
    found = {
        "weights, all-gather": _others(ranks.shards) * (2 * work.trained + work.scored) * own.undivided,
        "gradients, reduce-scatter": _others(ranks.shards) * work.trained * gradients,
        "gradients of copies, all-reduce": 2 * _others(ranks.copies) * work.trained * gradients / ranks.shards,
    }
    if plan.setup.generation is not None:
        found["weights for generation, all-gather"] = _others(ranks.shards) * own.undivided
    return found


def _others(ranks: int) -> float:
    """The share that comes from other ranks."""
    return (ranks - 1) / ranks
