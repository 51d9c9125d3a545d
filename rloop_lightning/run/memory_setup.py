"""The memory plan of a run, from its settings and the config of its model.

    plan = MemoryPlans(parts, policy_config, "bf16-mixed", "cuda", plan_config).plan()

Nothing is loaded: the model is made from config.json on the device meta.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from rloop_lightning.algorithms.consolidation import TrainedConsolidation
from rloop_lightning.algorithms.optimizer import state_bytes
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.engines.base import default_completion_limit
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.adapter_folder import base_of, without_weights
from rloop_lightning.model.config import PolicyConfig, model_source
from rloop_lightning.model.context import context_of
from rloop_lightning.model.model_shape import ModelShape
from rloop_lightning.model.policy_weights import PolicyWeights
from rloop_lightning.model.update_memory import Products
from rloop_lightning.run.memory_plan import MemoryPlan, Moments, Phase, Setup
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.plan_config import PlanConfig
from rloop_lightning.run.plan_ranks import ONE_RANK, PlannedRanks, RankWeights

PROMPT_TOKENS = 512
"""Tokens of the longest prompt that a plan counts with if nothing says more."""

AUTO = "auto"
PROBLEMS = 128
"""Problems of a rollout step as long as they are not read; run/parts.py takes no more by default."""

_TEMPLATE_TOKENS = 64  # that a chat template adds to a short problem
_LARGE, _SMALL = 2**18, 1024  # numbers in the tensors by which an optimizer's state is measured


def model_of(policy: PolicyConfig) -> Any:
    """The model of a policy without its weights, on the device meta.

    Raises:
        ValueError: config.json can't be read, or transformers refuses it.
    """
    return without_weights(base_of(model_source(policy.model)))


def memory_plan(
    model: Any,
    policy: PolicyConfig,
    parts: Parts,
    plan: PlanConfig,
    *,
    precision: Any,
    device: str,
    knows_problems: bool,
    ranks: PlannedRanks = ONE_RANK,
) -> MemoryPlan | None:
    """The plan before anything is loaded; None if the model has layers that are not counted.

    A setting of `auto` counts as the smallest: one rollout at once.

    Args:
        model: the model without its weights.
        precision: --trainer.precision.
        device: `cuda` or `cpu`.
        knows_problems: whether the problems may be read.
        ranks: the processes that train; the plan is of one of them.
    """
    shape = ModelShape.of(model)
    if shape is None:
        return None
    context = context_of(model.config.get_text_config()).tokens
    completion = parts.engine.max_new_tokens
    prompt = plan.prompt_tokens or parts.data.max_prompt_tokens or _prompt_tokens(parts, knows_problems)
    prompt = max(1, min(prompt, context - (completion or 1)))
    completion = completion or max(1, default_completion_limit(context, prompt))
    weights = PolicyWeights.planned(model, policy)
    problems = parts.problems_per_step if knows_problems else parts.loop.problems_per_step or PROBLEMS
    setup = _setup(policy, parts, weights, precision=precision, device=device, problems=problems)
    shares = tuple(replace(phase, per_update=-(-phase.per_update // ranks.number)) for phase in setup.phases)
    setup = replace(setup, prompt=prompt, completion=completion, phases=shares)
    own = RankWeights.of(weights, model, policy, ranks)
    return MemoryPlan(shape, own.weights, setup, ranks, own.gathered, own.whole)


def _prompt_tokens(parts: Parts, knows_problems: bool) -> int:
    """Tokens of the longest prompt. Before they are rendered, no more than the default, and than there are bytes."""
    if not knows_problems:
        return PROMPT_TOKENS
    sets = (parts.problems, *parts.evaluation_sets.values())
    longest = max(len(problem.prompt.encode()) for problems in sets for problem in problems)
    return min(PROMPT_TOKENS, longest + _TEMPLATE_TOKENS)


def _setup(
    policy: PolicyConfig, parts: Parts, weights: PolicyWeights, *, precision: Any, device: str, problems: int
) -> Setup:
    dtype: torch.dtype = getattr(torch, policy.dtype)
    products = torch.bfloat16 if str(precision).startswith("bf16") else dtype
    tokens: Any = policy.max_tokens_per_micro_batch
    engine = parts.engine
    rows: Any = getattr(engine, "max_rows", 1)
    return Setup(
        products=Products(
            device=device,
            weights=dtype,
            products=products,
            checkpointing=policy.gradient_checkpointing,
            adapted=weights.adapted,
            adapts_experts=weights.adapts_experts,
            trains_all=not weights.adapted and not weights.adapts_experts,
            quantised=policy.quantization != "none",
            head=None if policy.head_dtype == AUTO else getattr(torch, policy.head_dtype),
        ),
        phases=tuple(phases(parts, problems)),
        tokens=1 if tokens == AUTO else tokens,
        rows=1 if rows == AUTO else rows,
        prompt=1,
        completion=1,
        generation=engine_dtype(engine, products),
    )


def phases(parts: Parts, problems: int) -> Iterator[Phase]:
    """The phases of a run that train.

    Args:
        problems: of a rollout step.
    """
    rollouts = parts.loop.rollouts_per_problem
    algorithm, consolidation = parts.algorithm, parts.consolidation
    per_update = max(1, -(-problems * rollouts // algorithm.updates_per_step))
    yield Phase("exploration", moments(algorithm), algorithm.kl.has_copy, per_update, rollouts)
    if isinstance(consolidation, TrainedConsolidation):
        per_update = consolidation.rollouts_per_update
        yield Phase("consolidation", moments(consolidation), consolidation.keeps_copy, per_update, 1)


def moments(module: PolicyModule) -> Moments:
    """The state of a module's optimizer."""
    options = module.optimizer_options
    large, small = (state_bytes(module.optimizer, options, numbers) for numbers in (_LARGE, _SMALL))
    return Moments(large, small, paged="paged" in module.optimizer.lower(), offloaded=module.offload_optimizer)


def engine_dtype(engine: Any, products: torch.dtype) -> torch.dtype | None:
    """The dtype of an engine's products; None if it does not generate with the policy's own model."""
    if not isinstance(engine, TorchEngine):
        return None
    return products if engine.dtype == AUTO else getattr(torch, engine.dtype)
