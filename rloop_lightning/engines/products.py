"""A model's matrix products in another dtype than its weights', while it generates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def products_in(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Within it, a model computes its products in `dtype`, from weights that are cast once and not at every call.

    Embeddings, norms and the sums between layers stay in the weights' dtype, as in training under autocast. Where
    `dtype` holds more than the weights do, everything is computed in it.
    """
    if dtype == model.dtype:
        yield
        return
    wider = torch.promote_types(dtype, model.dtype) == dtype
    weights = list(model.parameters()) if wider else _matrices(model)
    masters = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.to(dtype)
        with torch.autocast(model.device.type, dtype, enabled=not wider):
            yield
    finally:
        for weight, master in zip(weights, masters, strict=True):
            weight.data = master


def _matrices(model: Any) -> list[nn.Parameter]:
    """Weights that are multiplied with; an embedding is only read, and the head has a dtype of its own."""
    others = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()
    others |= {id(weight) for weight in head.parameters()}
    return [
        weight
        for weight in model.parameters()
        if weight.dim() >= 2 and weight.is_floating_point() and id(weight) not in others
    ]
