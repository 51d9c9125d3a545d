"""What one rank of several holds, by arithmetic: its share of the weights, and the whole layers that it gathers.

    ranks = PlannedRanks(nodes=4, devices=8, strategy="fsdp2")
    own = RankWeights.of(weights, model, policy_config, ranks)
    own.weights, own.gathered                   # of one rank

- `ddp`: every rank holds everything.
- `fsdp2`: weights, gradients, moments and the reference policy are divided over all ranks. PyTorch divides each tensor
  along its first dimension, so a rank holds at least one row of it: with 128 experts on 256 ranks, one expert or none.
- `hsdp`: they are divided over the devices of a node; the nodes hold copies.

While a rank computes, it holds whole layers besides: the one that computes and the next one, which is fetched
meanwhile; the embeddings and the head; and the gradient of one layer with its copy in float32, which is summed over the
ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch

from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy_weights import PolicyWeights

Strategy = Literal["ddp", "fsdp2", "hsdp"]

_AT_ONCE = 2  # layers that are whole at one time
_SUMMED = 4  # bytes of a gradient that is summed over ranks


@dataclass(frozen=True)
class PlannedRanks:
    """The processes that train, one for each device.

    Args:
        nodes: machines.
        devices: devices of a machine.
        strategy: how the weights lie on them.
    """

    nodes: int = 1
    devices: int = 1
    strategy: Strategy = "ddp"

    @classmethod
    def of(cls, trainer: Mapping[str, Any]) -> Self:
        """The ranks of a Trainer's arguments."""
        devices, strategy = trainer.get("devices", 1), trainer.get("strategy", "auto")
        number = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
        known: Strategy = strategy if strategy in ("fsdp2", "hsdp") else "ddp"
        return cls(int(trainer.get("num_nodes", 1)), max(1, number), known)

    @property
    def number(self) -> int:
        return self.nodes * self.devices

    @property
    def shards(self) -> int:
        """Parts into which the weights are divided."""
        return {"ddp": 1, "fsdp2": self.number, "hsdp": self.devices}[self.strategy]

    @property
    def copies(self) -> int:
        """Copies of the weights, each on `shards` ranks."""
        return self.number // self.shards

    def __str__(self) -> str:
        several = f"{self.nodes} nodes x {self.devices} devices" if self.nodes > 1 else f"{self.devices} devices"
        parts = f"weights in {self.shards} shards" if self.shards > 1 else "weights whole on each rank"
        return f"{self.number} ranks: {several}, {self.strategy}, {parts}"


ONE_RANK = PlannedRanks()


@dataclass(frozen=True)
class RankWeights:
    """The weights of one rank.

    Args:
        weights: those that it holds all the time; of the rank that holds most.
        gathered: bytes of whole layers, and of the gradient of one, while it updates; 0 without shards.
        whole: bytes of a whole copy to generate with; 0 without shards.
        undivided: bytes of all weights, undivided.
        trained: numbers of all trained weights, undivided.
    """

    weights: PolicyWeights
    gathered: float
    whole: float
    undivided: float
    trained: int

    @classmethod
    def of(cls, weights: PolicyWeights, model: Any, policy: PolicyConfig, ranks: PlannedRanks) -> Self:
        """The share of one rank.

        Args:
            weights: of the whole policy.
            model: the model without its weights.
        """
        itemsize = getattr(torch, policy.dtype).itemsize
        decoder_layers = model.get_decoder().layers
        sizes = [_numbers(layer) for layer in decoder_layers]
        trains_all = not weights.frozen
        root = (_numbers(model) - sum(sizes)) * itemsize
        if ranks.shards == 1:
            return cls(weights, 0, 0, weights.bytes, sum(weights.trained))
        shapes = [tuple(weight.shape) for weight in model.parameters()]
        if trains_all:
            own = replace(weights, trained=tuple(_part(shape, ranks.shards) for shape in shapes))
        else:
            share = sum(_part(shape, ranks.shards) for shape in shapes) / _numbers(model)
            trained = tuple(math.ceil(size / ranks.shards) for size in weights.trained)
            own = replace(weights, frozen=weights.frozen * share, trained=trained)
        # The gradient of the largest tensor counts as a temporary one of the backward pass (model/update_memory.py).
        largest = max(weight.numel() for layer in decoder_layers for weight in layer.parameters())
        gradient = (max(sizes) - largest) * itemsize + max(sizes) * _SUMMED if trains_all else 0
        gathered = root + _AT_ONCE * max(sizes) * itemsize + gradient
        return cls(own, gathered, weights.bytes, weights.bytes, sum(weights.trained))


def pushed_bytes(model: Any, policy: PolicyConfig) -> float:
    """Bytes of the weights that an engine with a model of its own gets: adapters merged, 4-bit weights dequantised."""
    return _numbers(model) * float(getattr(torch, policy.dtype).itemsize)


def _numbers(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _part(shape: tuple[int, ...], shards: int) -> int:
    """Numbers of a tensor on the rank that holds most of it."""
    return math.ceil(shape[0] / shards) * math.prod(shape[1:])
