"""Frozen weights in 4 bits under an adapter (QLoRA, arXiv 2305.14314), by bitsandbytes.

    model = load_model(name, quantization_config=nf4(torch.bfloat16, without_weights), ...)
    keep_layout(model)                      # for both training and generation
    dequantised(layer.weight)               # the numbers that a layer computes with
    with computing_in(model, torch.float32): ...

Linear layers hold NF4 numbers with doubly quantised scales, 4.13 bits a weight, and compute in the dtype of the other
weights. Embeddings, norms, the head and routers stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rloop_lightning.model.adapter_packages import import_bitsandbytes
from rloop_lightning.model.lora_targets import is_router
from rloop_lightning.system.terminal import one_line

_SHOWN = 5  # weights that a message lists by name


def nf4(dtype: torch.dtype, model: nn.Module) -> Any:
    """What transformers needs to load a model with NF4 weights.

    Args:
        dtype: of the products.
        model: the same model without its weights.
    """
    from transformers import BitsAndBytesConfig

    import_bitsandbytes()
    head = model.get_output_embeddings()  # type: ignore[operator]  # of transformers, which type checkers don't see
    kept = [name for name, module in model.named_modules() if module is head or is_router(name)]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def quantised_share(model: nn.Module) -> float:
    """The share of a model's weights that are in linear layers, which is all that is quantised."""
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not is_router(name)
    )
    return linear / sum(weight.numel() for weight in model.parameters())


def keep_layout(model: nn.Module) -> None:
    """Keep one layout of the weights. On some CPUs, bitsandbytes changes it in generation, and can't train then."""
    for layer in quantised_layers(model).values():
        layer.support_avx512bf16_for_cpu = False


def quantised_layers(model: nn.Module) -> dict[str, Any]:
    """The quantised layers of a model, by name."""
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name: layer for name, layer in linear if is_quantised(layer.weight)}


def is_quantised(weight: Any) -> bool:
    """Whether a weight holds 4-bit numbers."""
    return getattr(weight, "quant_state", None) is not None


def dequantised(weight: Any) -> Tensor:
    """The numbers of a quantised weight, as its layer computes with them."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def count(weight: Any) -> int:
    """How many numbers a weight has, quantised or not."""
    return math.prod(weight.quant_state.shape) if is_quantised(weight) else weight.numel()


@contextmanager
def computing_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let quantised layers compute in another dtype in the block."""
    before = {layer: layer.compute_dtype for layer in quantised_layers(model).values()}
    try:
        for layer in before:
            layer.compute_dtype = dtype
        yield
    finally:
        for layer, own in before.items():
            layer.compute_dtype = own


def not_finite_in_files(folder: Path) -> list[str]:
    """Weights in a folder's files that are NaN or infinite, one message. Quantising them would hide that."""
    names = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 -- it is no mapping
                weight = opened.get_tensor(name)
                if weight.is_floating_point() and not weight.sum(dtype=torch.float32).isfinite():
                    names += [] if weight.isfinite().all() else [one_line(name)]
    if not names:
        return []
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return [f"NaN or infinite numbers in {', '.join(names[:_SHOWN])}{more}; take another checkpoint"]
