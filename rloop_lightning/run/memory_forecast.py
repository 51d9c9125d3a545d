"""The lines of the plan about memory: of training and of generation, which do not happen at the same time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rloop_lightning.model.model_shape import ModelShape
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.policy_weights import PolicyWeights
from rloop_lightning.model.quantization import is_quantised
from rloop_lightning.model.update_memory import Products
from rloop_lightning.run.memory_plan import MemoryPlan, Setup
from rloop_lightning.run.memory_setup import engine_dtype, phases
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.plan_text import size_text

TOKENS, ROWS = "--policy.max_tokens_per_micro_batch", "--engine.max_rows"


def memory_lines(parts: Parts, policy: Policy, device: torch.device) -> Iterator[tuple[str, str]]:
    """What training and generation hold at their peaks, with a loaded policy and rendered parts."""
    weights, shape = PolicyWeights.of(policy), ModelShape.of(policy.model)
    setup = _setup(parts, policy, weights, device)
    if shape is None or not policy.packs:
        held = weights.bytes + weights.trained_bytes + max(one.moments.bytes(weights.trained) for one in setup.phases)
        yield "memory", f"{size_text(held)} for weights, gradients, optimizer; activations, KV cache on top"
        return
    plan = MemoryPlan(shape, weights, setup)
    training, generation = plan.training(), plan.generation()
    held = sum(training.parts[name] for name in ("weights", "gradients", "optimizer", "reference policy"))
    yield "memory", f"{size_text(training.total)} in updates of {setup.tokens:,} tokens at once ({TOKENS}),"
    reference = ", reference policy" if training.parts["reference policy"] else ""
    yield "", f"{size_text(held)} of it for weights, gradients, optimizer{reference}"
    if generation is not None:
        cache, length = generation.parts["KV cache"], setup.prompt + setup.completion
        yield "", f"{size_text(generation.total)} in generation of {setup.rows:,} rollouts at once ({ROWS}),"
        yield "", f"{size_text(cache)} of it for their KV cache, at most {length:,} tokens each"


def _setup(parts: Parts, policy: Policy, weights: PolicyWeights, device: torch.device) -> Setup:
    products = Products(
        device=device.type,
        weights=policy.model.dtype,
        products=policy.compute_dtype,
        checkpointing=policy.recomputes,
        adapted=weights.adapted,
        adapts_experts=weights.adapts_experts,
        trains_all=policy.adapter is None,
        quantised=any(map(is_quantised, policy.parameters())),
        head=policy.head.dtype,
    )
    most = parts.largest_request
    return Setup(
        products=products,
        phases=tuple(phases(parts, parts.problems_per_step)),
        tokens=policy.max_tokens_per_micro_batch,
        rows=min(getattr(parts.engine, "max_rows", most), most),
        prompt=max(length for _, length in parts.prompt_lengths),
        completion=parts.engine.sampling(seed=0).max_new_tokens,
        generation=engine_dtype(parts.engine, products.products),
    )
