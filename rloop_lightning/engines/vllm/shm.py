"""vLLM's weight-transfer API over memory that the trainer shares with an engine on the same machine.

The trainer writes all weights into a memory file and sends the place of each tensor. `SharedMemoryEngine` is what runs
in vLLM's worker. It also holds what vLLM's CPU build leaves out when weights are loaded a second time. A push that
loads wrong weights all the same is found by the probe of truth.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


@dataclass
class Start(WeightTransferInitInfo):
    """The backend needs no rendezvous."""


@dataclass
class Update(WeightTransferUpdateInfo):
    """Where the weights are.

    Args:
        path: the memory file.
        tensors: name, dtype, shape and offset in bytes of each tensor.
    """

    path: str
    tensors: list[list[Any]]


class SharedMemoryEngine(WeightTransferEngine[Start, Update]):
    """Loads a model's weights from a memory file."""

    init_info_cls, update_info_cls = Start, Update

    def init_transfer_engine(self, init_info: Start) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Prepare the model for new weights. No request may run until `finish_weight_update`."""
        for module in self.model.modules():
            # Otherwise the CPU build computes with the experts that it packed before.
            if getattr(getattr(module, "quant_method", None), "moe_kernel", None) is not None:
                module.quant_method.moe_kernel = None
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load the weights. The base class would wait for an accelerator afterwards."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Update) -> None:
        """Load all tensors of an update."""
        self.model.load_weights(tensors_in(update_info.path, update_info.tensors))

    def finish_weight_update(self) -> None:
        """Make the loaded weights those that the model computes with."""
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            if _is_packed_linear(module):  # otherwise a tied head of the CPU build keeps its old packed weight
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing to do."""


def tensors_in(path: str, table: list[list[Any]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a memory file by name, as views: the trainer must not write before the update is finished."""
    buffer = torch.from_file(path, shared=True, size=os.stat(path).st_size, dtype=torch.uint8)
    for name, dtype_name, shape, offset in table:
        dtype = getattr(torch, dtype_name)
        size = dtype.itemsize * torch.Size(shape).numel()
        yield name, buffer[offset : offset + size].view(dtype).view(shape)


def _is_packed_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return hasattr(module, "cpu_linear") and isinstance(weight, Tensor) and weight.dim() == 2
