"""How many bytes the weights of a policy take, counted before they are loaded, or of a loaded policy.

weights = PolicyWeights.planned(without_weights("path/or/name"), PolicyConfig(...))
weights = PolicyWeights.of(policy)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from rloop_lightning.model.adapter_folder import AdapterFolder, is_adapter
from rloop_lightning.model.config import PolicyConfig, model_source
from rloop_lightning.model.lora_targets import LoraTargets, is_router
from rloop_lightning.model.quantization import count, is_quantised

# Bytes of an NF4 weight: half, an 8-bit scale for 64 of them, and a float32 scale for 256 of those.
_NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
_FULL = 4  # bytes of a number in float32


@dataclass(frozen=True)
class PolicyWeights:
    """The weights of a policy.

    Args:
        frozen: bytes of the weights that are not trained.
        trained: numbers in each trained tensor.
        itemsize: bytes of a trained number.
        cast: numbers in the matrices that generation casts, if it computes in another dtype.
        adapted: numbers per token that the adapter of a layer stores in an update; 0 without an adapter.
        adapts_experts: whether an adapter adapts experts.
    """

    frozen: float
    trained: tuple[int, ...]
    itemsize: int
    cast: int
    adapted: float = 0
    adapts_experts: bool = False

    @property
    def trained_bytes(self) -> int:
        return sum(self.trained) * self.itemsize

    @property
    def bytes(self) -> float:
        return self.frozen + self.trained_bytes

    @classmethod
    def of(cls, policy: Any) -> Self:
        """The weights of a loaded policy."""
        model, adapter = policy.model, policy.adapter
        trained = {} if adapter is None else adapter.parameters
        own = {id(weight) for weight in trained.values()}
        rest = [weight for weight in model.parameters() if id(weight) not in own]
        cast = _cast(model) + sum(weight.numel() for weight in trained.values())
        if adapter is None:
            return cls(0, tuple(weight.numel() for weight in rest), model.dtype.itemsize, cast)
        stacks = any("experts." in name for name in trained)
        inner = sum(weight.shape[0] for name, weight in trained.items() if _is_inner(name))
        frozen = sum(_held_bytes(weight) for weight in rest)
        sizes = tuple(weight.numel() for weight in trained.values())
        return cls(frozen, sizes, _FULL, cast, inner / model.config.get_text_config().num_hidden_layers, stacks)

    @classmethod
    def planned(cls, model: Any, config: PolicyConfig) -> Self:
        """The weights that a policy of these settings has.

        Args:
            model: the model without its weights, on the device meta.
        """
        dtype: torch.dtype = getattr(torch, config.dtype)
        total = sum(weight.numel() for weight in model.parameters())
        targets = _targets(model, config)
        if targets is None:
            return cls(0, tuple(weight.numel() for weight in model.parameters()), dtype.itemsize, _cast(model))
        rank, chosen = targets
        linear = [module for name, module in _linear(model) if _ends(name, chosen.modules)]
        experts = [weight for name, weight in model.named_parameters() if _ends(name, chosen.parameters)]
        sizes = [rank * size for module in linear for size in (module.in_features, module.out_features)]
        sizes += [rank * weight.shape[0] * size for weight in experts for size in weight.shape[1:]]
        quantised = 0
        if config.quantization != "none":
            quantised = sum(module.weight.numel() for _, module in _linear(model))
        return cls(
            frozen=(total - quantised) * dtype.itemsize + quantised * _NF4_BYTES,
            trained=tuple(sizes),
            itemsize=_FULL,
            cast=_cast(model) - quantised + sum(sizes),
            adapted=rank * len(linear) / model.config.get_text_config().num_hidden_layers,
            adapts_experts=bool(experts),
        )


def _targets(model: Any, config: PolicyConfig) -> tuple[int, LoraTargets] | None:
    """The rank and the adapted layers of the policy's adapter; None if it has none."""
    name = model_source(config.model)
    if is_adapter(name):
        settings = AdapterFolder.read(Path(name)).config
        named = [settings.get(kind) or [] for kind in ("target_modules", "target_parameters")]
        return settings["r"], LoraTargets(*named)
    return (config.lora.rank, LoraTargets.of(model, config.lora.targets)) if config.lora.rank else None


def _linear(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers that are adapted and quantised: all but the head and routers."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and not is_router(name):
            yield name, module


def _ends(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _is_inner(name: str) -> bool:
    """Whether a weight of an adapter is the first of its two, on a linear layer."""
    return ".lora_A." in name and "experts." not in name


def _held_bytes(weight: Any) -> float:
    return count(weight) * _NF4_BYTES if is_quantised(weight) else weight.numel() * weight.element_size()


def _cast(model: Any) -> int:
    """Numbers in the matrices of products, without the head, of weights that are not quantised."""
    others = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    others.add(id(model.get_output_embeddings().weight))
    return sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.dim() >= 2 and weight.is_floating_point() and id(weight) not in others and ".lora_" not in name
    )
