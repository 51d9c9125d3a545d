"""The lines of the plan about memory: of training and of generation, which do not happen at the same time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.quantization import count
from rloop_lightning.model.update_memory import ModelShape, update_memory
from rloop_lightning.run.parts import Parts

_MOMENTS, _MOMENTS_IN_8_BITS = 8, 2  # bytes of AdamW's two moments of a weight


def memory_lines(parts: Parts, policy: Policy, device: torch.device) -> Iterator[tuple[str, str]]:
    """What the run holds all the time; on a GPU, what an update and generation take besides."""
    sizes = [(count(p), p.numel() * p.element_size(), p.requires_grad) for p in policy.parameters()]
    moments = _MOMENTS_IN_8_BITS if "8bit" in parts.algorithm.optimizer else _MOMENTS
    held = sum(2 * size + moments * numbers if trained else size for numbers, size, trained in sizes)
    reference = ""
    if parts.algorithm.kl.has_copy:
        held += sum(size for _, size, trained in sizes if trained)
        reference = ", reference policy"
    if device.type == "cpu" or (shape := ModelShape.of(policy.model)) is None:
        yield "memory", f"{size_text(held)} for weights, gradients, optimizer{reference}; activations, KV cache on top"
        return
    yield "memory", f"{size_text(held)} for weights, gradients, optimizer{reference}; besides, one of:"
    half = policy.compute_dtype != torch.float32
    if half and policy.packs:
        tokens = policy.max_tokens_per_micro_batch
        rank = 0 if policy.adapter is None else policy.adapter.config.r
        update = update_memory(
            shape,
            tokens=tokens,
            mixed=policy.model.dtype == torch.float32,
            checkpointing=policy.recomputes,
            adapter_rank=rank,
        )
        flag = "--policy.max_tokens_per_micro_batch"
        yield "", f"{size_text(int(update.peak))} for an update of {tokens:,} tokens at once ({flag})"
    if isinstance(parts.engine, TorchEngine):
        longest = max(length for _, length in parts.prompt_lengths) + parts.engine.sampling(seed=0).max_new_tokens
        rows = min(parts.engine.max_rows, parts.problems_per_step * parts.loop.rollouts_per_problem)
        cache = rows * longest * 2 * shape.layers * shape.keys * (2 if half else 4)
        yield "", f"{size_text(cache)} for the KV cache of {rows:,} rollouts of {longest:,} tokens (--engine.max_rows)"


def size_text(size: int) -> str:
    """A number of bytes as text: 1.5 GiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 2**10:.3g} KiB"
