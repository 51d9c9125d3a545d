"""Tiny models of many architectures, with what is peculiar to each switched on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from builders import make_model, make_tokenizer
from torch import Tensor, nn

from rloop_lightning.model.policy import Policy

_WINDOW = {"sliding_window": 4}  # shorter than the rollouts
_EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,  # values narrower than keys
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    **_EXPERTS,
}

_GLM = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, **_EXPERTS}

ORIGINAL_CONTEXT = 31
"""The longest sequence that longrope rotates by its short factors."""

_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
_SCALED = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 16.0,
    "original_max_position_embeddings": 4,  # queries are scaled by log(1 + position // 4)
    "llama_4_scaling_beta": 0.5,
}
_SPARSE = {
    "num_local_experts": 4,
    "mlp_layer_types": ["dense", "sparse"],
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_block_size": 32,
    "index_topk_blocks": 1,  # all tokens of a rollout, but of a packed row only some
}

PACKED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Llama": ("Llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
    "Llama, one key head": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mistral, sliding": ("Mistral", _WINDOW),
    "Ministral": ("Ministral", {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "Qwen2": ("Qwen2", {}),
    "Qwen2, sliding": ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1, **_WINDOW}),
    "Qwen3": ("Qwen3", {"head_dim": 16}),
    "Gemma2": ("Gemma2", {**_WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}),
    "Gemma3": ("Gemma3Text", {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "Llama, dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "Ministral3, scaled by position": ("Ministral3", {"rope_parameters": _SCALED, "sliding_window": None}),
    "Phi3": ("Phi3", {}),
    "Phi3, longrope": ("Phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": ORIGINAL_CONTEXT}),
    "Olmo2": ("Olmo2", {}),
    "Olmo3": ("Olmo3", {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "Granite": ("Granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "SmolLM3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "GLM4": ("Glm4", {}),
    "GPT-NeoX": ("GPTNeoX", {}),
    "Cohere2": ("Cohere2", {**_WINDOW, "logit_scale": 0.25}),
    "StableLM": ("StableLm", {}),
    "Starcoder2": ("Starcoder2", _WINDOW),
    "OPT": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Mixtral": ("Mixtral", {"num_local_experts": 4}),
    "Qwen3-MoE": ("Qwen3Moe", {"num_experts": 4, **_EXPERTS}),
    "OLMoE": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "GLM4-MoE": ("Glm4Moe", _GLM),
    "GPT-OSS": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, **_WINDOW}),
    "DeepSeek-V3": ("DeepseekV3", _DEEPSEEK),
}
"""Models that take packed rows, by name: architecture, and what differs from `make_model`'s settings."""

PADDED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Qwen3-Next": ("Qwen3Next", {"num_experts": 4, "layer_types": ["linear_attention", "full_attention"], **_EXPERTS}),
    "LFM2": ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Bloom": ("Bloom", {}),
    "DeepSeek-V3.2": ("DeepseekV32", {**_DEEPSEEK, "index_topk": 32, "index_n_heads": 2, "index_head_dim": 8}),
    "MiniMax-M3, sparse": ("MiniMaxM3VLText", {"layer_types": ["minimax_m3_sparse"] * 2, **_SPARSE, **_EXPERTS}),
}
"""Models that don't."""


def make_architecture(name: str, *, seed: int = 0) -> Policy:
    """A tiny policy of an architecture."""
    return Policy(make_architecture_model(name, seed=seed), make_tokenizer())


def make_architecture_model(name: str, *, seed: int = 0) -> Any:
    """Its weights are all off their initial 0 and 1; in float64 but for experts, whose products have none."""
    architecture, changes = {**PACKED, **PADDED}[name]
    dtype = torch.float32 if any("expert" in key for key in changes) else torch.float64
    model = make_model(architecture, seed=seed, dtype=dtype, **changes)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(dtype)
            parameter.mul_(1 + 0.2 * noise).add_(0.01)
    return model


class MeanOfNeighbours(nn.Module):
    """Mixes each token with the one before it in its forward pass, as a convolution does. A lone token has none."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.norm(hidden)
        return hidden + hidden.roll(1, dims=1).index_fill(1, torch.tensor([0]), 0)
