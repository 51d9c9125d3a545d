"""Lightning's strategy for sharded weights, with the mesh that a policy is sharded over."""

from __future__ import annotations

from datetime import timedelta

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import init_device_mesh


class FSDP2Strategy(ModelParallelStrategy):
    """Shards weights, gradients and optimizer state over all ranks by FSDP2. Checkpoints are one file.

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
            shape = (self.replicas, world // self.replicas)
            mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicas", "shards"))
            assert self.lightning_module is not None
            self.lightning_module._device_mesh = mesh
