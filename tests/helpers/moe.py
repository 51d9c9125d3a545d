"""Tiny mixtures of experts, what their experts modules are given, and a slow reference that takes experts as told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from builders import make_model, make_tokenizer, random_batch
from torch import Tensor

from rloop_lightning.model.packing import pack
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import RolloutBatch

EXPERTS, TOP_K = 8, 2

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "Qwen3Moe": {"num_experts": EXPERTS, "moe_intermediate_size": 16, "norm_topk_prob": True},
    "Mixtral": {"num_local_experts": EXPERTS, "sliding_window": None},
    "Olmoe": {"num_experts": EXPERTS, "norm_topk_prob": False, "num_key_value_heads": 4},
    "Qwen2Moe": {
        "num_experts": EXPERTS,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "norm_topk_prob": False,
    },
    "FlexOlmo": {"num_experts": EXPERTS, "norm_topk_prob": True, "num_key_value_heads": 4},
}


def make_moe(architecture: str = "Qwen3Moe", **changes: Any) -> Any:
    """A random mixture of experts whose routers are far from undecided."""
    model = make_model(architecture, **{"num_experts_per_tok": TOP_K, **ARCHITECTURES[architecture], **changes})
    with torch.no_grad():
        for router in routers(model):
            router.weight.mul_(3)
    if model.dtype == torch.float64:
        model.set_experts_implementation("eager")  # the default, grouped products, has no float64
    return model


def make_moe_policy(
    architecture: str = "Qwen3Moe", routing_replay: Any = "r2", *, max_tokens: int = 16384, **changes: Any
) -> Policy:
    return Policy(make_moe(architecture, **changes), make_tokenizer(), max_tokens, routing_replay=routing_replay)


def modules_named(model: Any, ending: str) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith(ending)]


def routers(model: Any) -> list[Any]:
    return modules_named(model, "TopKRouter")


@torch.no_grad()
def perturb(policy: Policy, size: float = 0.1, seed: int = 1) -> Policy:
    """Move every weight, as an optimizer step would; far enough that routers change their minds."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_(size * noise.to(parameter.dtype))
    return policy


@torch.no_grad()
def recorded(policy: Policy, batch: RolloutBatch | None = None) -> RolloutBatch:
    """The batch with the experts that the policy chooses now."""
    batch = random_batch() if batch is None else batch
    return replace(batch, routed_experts=policy.logprobs(replace(batch, routed_experts=None)).routed_experts)


def spread(batch: RolloutBatch, tokens: Tensor) -> Tensor:
    """What the tokens of a packed forward pass have [N, ...], by row and column of the batch [B, L, ...]."""
    return pack(batch).scatter(tokens, batch.input_ids.shape[1])


def rows_of(batch: RolloutBatch, tokens: Tensor) -> list[Tensor]:
    """What stands at the recorded positions of each row of [B, L, ...]."""
    return [own[: int(length) - 1] for own, length in zip(tokens, batch.lengths, strict=True)]


@contextmanager
def watched(policy: Policy) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Hidden states [N, H], indices and weights [N, top_k] that each call of an experts module was given."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    modules = modules_named(policy.model, "Experts")

    def look(module: Any, args: tuple[Tensor, Tensor, Tensor]) -> None:
        if any(module is own for own in modules):  # a copy of the policy has copies of its hooks
            hidden, indices, weights = (value.detach().clone() for value in args)
            seen.append((hidden, indices, weights))

    hooks = [module.register_forward_pre_hook(look) for module in modules]
    yield seen
    for hook in hooks:
        hook.remove()


def slow_weights(router: Any, hidden: Tensor, chosen: Tensor) -> Tensor:
    """Gate weights of the chosen experts as the papers say it: a masked softmax over all of them, [N, experts]."""
    scores = torch.exp(hidden @ router.weight.T)
    scores = scores / scores.sum(-1, keepdim=True)
    scores = scores * torch.zeros_like(scores).scatter(1, chosen, 1.0)
    return scores / scores.sum(-1, keepdim=True) if getattr(router, "norm_topk_prob", True) else scores


def slow_block(block: Any, told: Callable[[], Tensor]) -> Callable[[Tensor], Tensor]:
    """A mixture's forward in which every expert computes every token, and weights drop those that weren't chosen."""

    def forward(hidden_states: Tensor) -> Tensor:
        hidden = hidden_states.flatten(0, 1)
        experts = block.experts
        gate, up = torch.einsum("nh,eih->nei", hidden, experts.gate_up_proj).chunk(2, dim=-1)
        outputs = torch.einsum("nei,ehi->neh", torch.nn.functional.silu(gate) * up, experts.down_proj)
        mixed = torch.einsum("ne,neh->nh", slow_weights(block.gate, hidden, told()), outputs)
        if hasattr(block, "shared_expert"):
            mixed = mixed + torch.sigmoid(block.shared_expert_gate(hidden)) * block.shared_expert(hidden)
        return mixed.reshape(hidden_states.shape)

    return forward


def slow_replay(policy: Policy, batch: RolloutBatch) -> list[Tensor]:
    """Logprobs of each row's completion tokens under the batch's experts; leaves the policy's mixtures replaced.

    One row at a time, without its last token, so that every position has a record.
    """
    assert batch.routed_experts is not None
    current: list[Tensor] = []  # the experts of a row
    for layer, block in enumerate(modules_named(policy.model, "SparseMoeBlock")):
        block.forward = slow_block(block, lambda layer=layer: current[0][:, layer].long())  # type: ignore[misc]
    logprobs = []
    for row, experts in enumerate(rows_of(batch, batch.routed_experts)):
        current[:] = [experts]
        prompt, length = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        ids = batch.input_ids[row, :length]
        logits = policy.model(input_ids=ids[None, :-1], use_cache=False).logits[0, prompt - 1 :] / batch.temperature
        targets = ids[prompt:, None]
        logprobs.append(logits.log_softmax(-1).gather(-1, targets).squeeze(-1))
    return logprobs
