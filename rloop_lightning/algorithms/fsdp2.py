"""Lightning's strategy for sharded weights, with the mesh that a policy is sharded over.

A run shards its policy once, at its start, since it generates and loads weights between the fits.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import shard


class FSDP2Strategy(ModelParallelStrategy):
    """Shards weights, gradients and optimizer state over all ranks by FSDP2.

    Checkpoints are one file, which rank 0 alone writes and reads. It is as one process writes it, so that each strategy
    reads those of the others.

    Args:
        replicas: shard within each of so many equal groups of ranks, and replicate between them (HSDP): with the number
            of nodes, weights are gathered within a node, and gradients alone cross nodes. 1 shards over all ranks.
        process_group_backend: backend of collectives; null is NCCL on GPUs and Gloo on a CPU.
        timeout: how long a rank waits for the others in a collective.
    """

    def __init__(
        self,
        replicas: int = 1,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.replicas = replicas

    def setup_environment(self) -> None:
        """Join the ranks, and make the mesh for `configure_model`.

        Raises:
            ValueError: the ranks can't be divided into as many groups.
        """
        world = self.num_nodes * self.num_processes
        if self.replicas < 1 or world % self.replicas:
            raise ValueError(f"replicas: must divide the number of ranks {world}, got {self.replicas}")
        self._data_parallel_size = world
        super().setup_environment()
        if self.replicas > 1:
            assert self.lightning_module is not None
            self.lightning_module._device_mesh = self._mesh()

    def shard(self, policy: Policy) -> None:
        """Shard a policy, which all ranks hold with the same weights. All of them call it."""
        shard(policy, self._mesh())  # which moves it to the mesh's device a layer at a time

    def _mesh(self) -> DeviceMesh:
        world, device = dist.get_world_size(), self.root_device.type
        if self.replicas == 1:
            return init_device_mesh(device, (world,), mesh_dim_names=("shards",))
        shape = (self.replicas, world // self.replicas)
        return init_device_mesh(device, shape, mesh_dim_names=("replicas", "shards"))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state dict on rank 0, and an empty one on the others. All ranks call it."""
        own = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: Any = get_optimizer_state_dict(self.model, own, options=options)
        if self.global_rank != 0:
            return {}
        numbers = {name: number for number, name in enumerate(self._trained(own))}
        return {
            "state": {numbers[name]: values for name, values in state["state"].items()},
            "param_groups": [
                {**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]
            ],
        }

    def _trained(self, optimizer: Optimizer) -> list[str]:
        """The names of an optimizer's parameters in its own order, which numbers them in a state dict."""
        assert self.model is not None
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights and optimizers from rank 0's file, a tensor at a time. Returns the rest of the checkpoint."""
        checkpoint: dict[str, Any] = {}
        if self.global_rank == 0:
            checkpoint = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        weights = checkpoint.pop("state_dict", {})
        states = checkpoint.pop("optimizer_states", [{}] * len(self.optimizers))
        model, module = self.model, self.lightning_module
        assert model is not None
        assert module is not None
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=module.strict_loading)
        set_model_state_dict(model, weights, options=options)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            set_optimizer_state_dict(model, optimizer, _by_name(state, self._trained(optimizer)), options=options)
        rest: dict[str, Any] = self.broadcast(checkpoint)
        return rest


def _by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """A state dict of an optimizer with names in place of numbers; empty on ranks without one."""
    if not state:
        return {}
    return {
        "state": {names[number]: values for number, values in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]
        ],
    }
