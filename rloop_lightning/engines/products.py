"""Compute a model's matrix products in a dtype other than its weights' during generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from rloop_lightning.model.quantization import computing_in


@contextmanager
def products_in(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Compute a model's products in `dtype` in the block. The weights are cast once, not in every call.

    Embeddings, norms and the residual stream keep the weights' dtype, as in training under autocast. If `dtype` is
    wider than the weights' dtype, everything is computed in it. An adapter may have float32 weights in a model of half
    precision.
    """
    weights = [weight for weight in _matrices(model) if weight.dtype != dtype]
    if dtype == model.dtype and not weights:
        yield
        return
    wider = dtype != model.dtype and torch.promote_types(dtype, model.dtype) == dtype
    if wider:
        weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    masters = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.to(dtype)
        quantised = computing_in(model, dtype) if wider else nullcontext()
        with quantised, torch.autocast(model.device.type, dtype, enabled=not wider):
            yield
    finally:
        for weight, master in zip(weights, masters, strict=True):
            weight.data = master


def _matrices(model: Any) -> list[nn.Parameter]:
    """The weights of matrix products, without embeddings (only indexed) and the head (which has its own dtype)."""
    others = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()
    others |= {id(weight) for weight in head.parameters()}
    return [
        weight
        for weight in model.parameters()
        if weight.dim() >= 2 and weight.is_floating_point() and id(weight) not in others
    ]
