"""What to change so that a run fits: only changes that fit by the plan's own arithmetic, cheapest first.

for advice in advices(planned, policy, model, limit): print(advice)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import torch

from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy_weights import PolicyWeights
from rloop_lightning.model.quantization import quantised_share
from rloop_lightning.run.memory_plan import MemoryPlan, Moments
from rloop_lightning.run.plan_ranks import RankWeights

_RANK = 32
_MOST = 3  # advices
_LEAST_QUANTISED = 0.3  # as in adapter_folder.py
_LEAST_COMPLETION = 16  # tokens


@dataclass(frozen=True)
class Change:
    """A change of settings that lowers memory.

    Args:
        flags: as they are given to rloop-fit.
        cost: what it costs in speed or in what is learnt, only to order advice.
        policy: the changed settings of the policy.
        plan: the changed plan, before the weights are counted again.
    """

    flags: str
    cost: float
    policy: Callable[[PolicyConfig], PolicyConfig] = lambda policy: policy
    plan: Callable[[MemoryPlan], MemoryPlan] = lambda plan: plan


def advices(plan: MemoryPlan, policy: PolicyConfig, model: Any, limit: float, *, mixed: bool) -> list[str]:
    """Settings with which the run fits, each as flags; empty if none are known.

    Args:
        plan: of the run as it is set.
        policy: the policy's settings.
        model: the model without its weights.
        limit: bytes.
        mixed: whether products are in bfloat16 already.
    """
    if budgets := with_budgets(plan, limit):
        return [budgets[1]]
    found: list[tuple[set[str], str]] = []
    for changes in _by_cost(list(_changes(plan, policy, model, mixed=mixed))):
        names = {change.flags for change in changes}
        if any(earlier <= names for earlier, _ in found):
            continue  # a part of it fits already
        changed = _changed(plan, policy, model, changes)
        if changed is not None and (budgets := with_budgets(changed, limit)):
            found.append((names, " ".join([*(change.flags for change in changes), budgets[1]]).strip()))
        if len(found) == _MOST:
            break
    return [flags for _, flags in found]


def with_budgets(plan: MemoryPlan, limit: float) -> tuple[MemoryPlan, str] | None:
    """The plan with smaller budgets where it needs them, and their flags; None if no budget fits."""
    flags = []
    if plan.training().total > limit:
        tokens = plan.tokens_within(limit)
        if tokens is None:
            return None
        plan = plan.with_(tokens=min(tokens, plan.setup.tokens))
        flags.append(f"--policy.max_tokens_per_micro_batch {tokens}")
    generation = plan.generation()
    if generation is not None and generation.total > limit:
        rows = plan.rows_within(limit, plan.setup.rows)
        if rows is None:
            return None
        plan = plan.with_(rows=rows)
        flags.append(f"--engine.max_rows {rows}")
    return plan, " ".join(flags)


def _by_cost(changes: Sequence[Change]) -> Iterator[tuple[Change, ...]]:
    """All sets of changes, cheapest first; of equal cost, smallest first."""
    sets = [some for size in range(1, len(changes) + 1) for some in combinations(changes, size)]
    yield from sorted(sets, key=lambda some: (sum(change.cost for change in some), len(some)))


def _changes(plan: MemoryPlan, policy: PolicyConfig, model: Any, *, mixed: bool) -> Iterator[Change]:
    setup = plan.setup
    full, whole = setup.products.trains_all, plan.ranks.shards == 1
    if not setup.products.checkpointing:
        yield Change("--policy.gradient_checkpointing true", 1, lambda one: replace(one, gradient_checkpointing=True))
    if setup.products.device == "cuda" and policy.dtype == "float32" and not mixed:
        yield Change("--trainer.precision bf16-mixed", 1, plan=_in_bfloat16)
    if full and whole and any(phase.moments.large > 4 for phase in setup.phases):
        names = {"exploration": "--algo", "consolidation": "--consolidate"}
        flags = " ".join(f"{names[phase.name]}.optimizer adamw8bit" for phase in setup.phases)
        yield Change(flags, 2, plan=_in_8_bits)
    if policy.dtype == "float32":
        yield Change("--policy.dtype bfloat16", 3, lambda one: replace(one, dtype="bfloat16"))
    if full:
        lora = replace(policy.lora, rank=_RANK)
        yield Change(f"--policy.lora.rank {_RANK}", 6, lambda one: replace(one, lora=lora))
    if policy.quantization == "none" and whole and quantised_share(model) >= _LEAST_QUANTISED:
        yield Change("--policy.quantization nf4", 4, lambda one: replace(one, quantization="nf4"))
    for cost, divisor in ((9, 2), (10, 4), (12, 8)):
        shorter = setup.completion // divisor
        if shorter >= _LEAST_COMPLETION:
            yield Change(f"--engine.max_new_tokens {shorter}", cost, plan=partial(_with_completion, shorter))


def _changed(plan: MemoryPlan, policy: PolicyConfig, model: Any, changes: Sequence[Change]) -> MemoryPlan | None:
    """The plan with changes; None if they can't be combined."""
    flags = [change.flags for change in changes]
    if sum("max_new_tokens" in flag for flag in flags) > 1:
        return None
    for change in changes:
        policy = change.policy(policy)
    has_adapter = bool(policy.lora.rank) or not plan.setup.products.trains_all
    if policy.quantization != "none" and not has_adapter:
        return None
    if has_adapter and any("optimizer" in flag for flag in flags):
        return None  # an adapter's moments are small
    weights = PolicyWeights.planned(model, policy)
    dtype: torch.dtype = getattr(torch, policy.dtype)
    before = plan.setup.products
    products = replace(
        before,
        weights=dtype,
        products=before.products if before.products != before.weights else dtype,
        checkpointing=policy.gradient_checkpointing,
        adapted=weights.adapted,
        adapts_experts=weights.adapts_experts,
        trains_all=not has_adapter,
        quantised=policy.quantization != "none",
    )
    generation = plan.setup.generation
    if generation == before.weights:
        generation = dtype
    own = RankWeights.of(weights, model, policy, plan.ranks)
    plan = replace(plan, weights=own.weights, gathered=own.gathered, whole=own.whole)
    plan = plan.with_(products=products, generation=generation)
    for change in changes:
        plan = change.plan(plan)
    return plan


def _with_completion(tokens: int, plan: MemoryPlan) -> MemoryPlan:
    return plan.with_(completion=tokens)


def _in_bfloat16(plan: MemoryPlan) -> MemoryPlan:
    generation = None if plan.setup.generation is None else torch.bfloat16
    return plan.with_(products=replace(plan.setup.products, products=torch.bfloat16), generation=generation)


def _in_8_bits(plan: MemoryPlan) -> MemoryPlan:
    moments = Moments(large=2 + 8 / 256, small=8)
    return plan.with_(phases=tuple(replace(phase, moments=moments) for phase in plan.setup.phases))
