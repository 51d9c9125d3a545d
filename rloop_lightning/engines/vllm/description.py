"""The shape of a model in one line, by which trainer and server see that they have the same one. Imports nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SHAPES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
)
PREFIX = "shape/"


def described(architecture: str, config: Mapping[str, Any]) -> str:
    """The name under which a server lists a model's shape: `shape/Qwen2ForCausalLM/hidden_size=64/...`.

    Args:
        architecture: the model's class.
        config: config.json of its text model.
    """
    sizes = [f"{name}={config[name]}" for name in _SHAPES if config.get(name) is not None]
    return PREFIX + "/".join([architecture, *sizes])


def differences(ours: str, theirs: str) -> Sequence[str]:
    """What differs between two descriptions, such as "hidden_size=64 instead of hidden_size=128"."""
    mine, other = (text.removeprefix(PREFIX).split("/") for text in (ours, theirs))
    if mine[0] != other[0]:
        return [f"{other[0]} instead of {mine[0]}"]
    named = [dict(item.split("=", 1) for item in parts[1:]) for parts in (mine, other)]
    return [
        f"{name} {named[1].get(name, 'missing')} instead of {named[0].get(name, 'missing')}"
        for name in dict.fromkeys([*named[0], *named[1]])
        if named[0].get(name) != named[1].get(name)
    ]
