"""Weights to files: a whole model, an adapter, or a model with its adapter merged into it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from rloop_lightning.errors import NonFiniteError
from rloop_lightning.model.adapter_folder import write_adapter
from rloop_lightning.model.lora import Adapter, merged


def write_weights(model: Any, adapter: Adapter | None, folder: Path, *, base: str, merge: bool) -> None:
    """Write a model to a folder; of one with an adapter, the adapter alone.

    Args:
        base: folder or hub name of the model under the adapter.
        merge: write the model with the adapter merged into it.

    Raises:
        OSError: it can't be written.
    """
    try:
        if adapter is None:
            model.save_pretrained(folder)
        elif merge:
            _write_merged(adapter, folder)
        else:
            write_adapter(adapter, folder, base)
    except SafetensorError as error:  # raised when the disk is full
        raise OSError(str(error)) from error


def _write_merged(adapter: Adapter, folder: Path) -> None:
    """Write the model with the adapter merged into it, as a model that never had one."""
    model = adapter.base_model
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):  # the merged weights are not quantised
        del config.quantization_config
    with torch.device("meta"):  # of this model, no weight is read
        plain = type(model)(config)
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder, state_dict=merged(adapter))


@torch.no_grad()
def check_finite(model: nn.Module) -> None:
    """Check that every trained weight is finite.

    Raises:
        NonFiniteError: names the first weight that is NaN or infinite.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if torch.isfinite(nn.utils.get_total_norm(weights.values())):  # a single device sync
        return
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise NonFiniteError(f"the policy's weight {name} holds NaN or infinite values")
