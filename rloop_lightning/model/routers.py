"""The routers of mixture-of-experts models: the known classes, and the gate weights of chosen experts.

    routers = find_routers(model)               # by name, from the first layer up
    logits, weights, chosen = router(hidden)    # [N, experts], [N, top_k], [N, top_k]
    gate_weights(router, hidden, chosen)        # the same weights, or those of other experts

All known routers compute a softmax over all experts and take its top k, normalised or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, softmax

KNOWN: Mapping[str, str] = {
    "flex_olmo": "FlexOlmoTopKRouter",
    "mixtral": "MixtralTopKRouter",
    "olmoe": "OlmoeTopKRouter",
    "qwen2_moe": "Qwen2MoeTopKRouter",
    "qwen3_moe": "Qwen3MoeTopKRouter",
}
"""Model type -> class name of its routers."""


def unknown_routers(model_type: str | None) -> list[str]:
    """An error if the routing of this model type can't be replayed."""
    if model_type in KNOWN:
        return []
    return [
        f"no routers are known for model type {model_type!r}; --policy.routing_replay takes {', '.join(KNOWN)}, "
        "leave it at none for any other"
    ]


def find_routers(model: Any) -> dict[str, Any]:
    """The routers of a Hugging Face causal LM by name, from the first layer up.

    Raises:
        ValueError: the model has no routers, unknown ones, or routers whose weights differ from `gate_weights`.
    """
    model_type = model.config.get_text_config().model_type
    if wrong := unknown_routers(model_type):
        raise ValueError(wrong[0])
    routers = {name: module for name, module in model.named_modules() if type(module).__name__ == KNOWN[model_type]}
    if not routers:
        raise ValueError(f"no layer has a router ({KNOWN[model_type]}); leave --policy.routing_replay at none")
    for name, router in routers.items():
        if not _as_known(router):
            raise ValueError(
                f"the router {name} computes other gate weights than the known {KNOWN[model_type]}; leave "
                "--policy.routing_replay at none"
            )
    return routers


def gate_weights(router: Any, hidden: Tensor, chosen: Tensor) -> Tensor:
    """A router's gate weights of the chosen experts, [N, top_k] float32.

    They are gathered from its scores of all experts, so that the router gets gradients whichever experts are chosen.

    Args:
        hidden: the router's input, [..., H] of N tokens.
        chosen: [N, top_k] int64.
    """
    logits = linear(hidden.reshape(-1, hidden.shape[-1]), router.weight)  # [N, experts]
    weights = softmax(logits, dim=-1, dtype=torch.float32).gather(-1, chosen)
    return weights / weights.sum(-1, keepdim=True) if getattr(router, "norm_topk_prob", True) else weights


@torch.no_grad()
def _as_known(router: Any) -> bool:
    """Whether `gate_weights` reproduces the router's own gate weights."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(16, router.weight.shape[1], generator=generator).to(router.weight)
    _, weights, chosen = router(hidden)
    return torch.allclose(weights.float(), gate_weights(router, hidden, chosen), rtol=1e-2, atol=1e-6)
