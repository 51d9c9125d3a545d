"""Weights sharded over the ranks by FSDP2: the strategy of `--trainer.strategy fsdp2` and `hsdp`.

`fsdp2` shards over all ranks. `hsdp` shards over the ranks of a machine and replicates over machines, so that layers
are gathered within a machine only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType

from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import shard

SHARDED = ("fsdp2", "hsdp")
"""The short names."""


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with checkpoints in one file that rank 0 alone writes and reads.

    Args:
        name: `fsdp2` or `hsdp`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=None if torch.cuda.is_available() else "gloo",
        )
        self.name = name

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning knows no way to say "all"
        super().setup_environment()

    def shard(self, policy: Policy) -> None:
        """Shard a policy, which all ranks hold with the same weights. All of them call it."""
        size = dist.get_world_size()
        inside = self.num_processes if self.name == "hsdp" else size
        device = self.root_device.type
        if inside == size:
            mesh = init_device_mesh(device, (size,), mesh_dim_names=("shard",))
        else:
            mesh = init_device_mesh(device, (size // inside, inside), mesh_dim_names=("replicate", "shard"))
        shard(policy, mesh)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights and optimizers from rank 0's file, a tensor at a time. Returns the rest of the checkpoint."""
        checkpoint: dict[str, Any] = {}
        if self.global_rank == 0:
            checkpoint = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        weights = checkpoint.pop("state_dict", {})
        states = checkpoint.pop("optimizer_states", [{}] * len(self.optimizers))
        assert self.model is not None
        assert self.lightning_module is not None
        options = StateDictOptions(
            full_state_dict=True, broadcast_from_rank0=True, strict=self.lightning_module.strict_loading
        )
        set_model_state_dict(self.model, weights, options=options)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            named = FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_NAME, self.model)
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        rest: dict[str, Any] = self.broadcast(checkpoint)
        return rest
