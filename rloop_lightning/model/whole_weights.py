"""The weights of a policy whole, a layer at a time, whether they are sharded or not.

    for weights in whole_weights(policy):       # name -> tensor
        ...

Of a sharded policy, every rank holds one layer at a time. Gathering is collective: all ranks call it, and go to the
end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rloop_lightning.model.sharding import is_sharded, layers

if TYPE_CHECKING:
    from rloop_lightning.model.policy import Policy


@torch.no_grad()
def whole_weights(policy: Policy) -> Iterator[dict[str, Tensor]]:
    """The weights of a policy's model by name: those of each layer, then all others. Tied weights are one tensor.

    Those of a sharded policy are valid until the next ones.
    """
    model = policy.model
    state = model.state_dict(keep_vars=True)
    owners: dict[str, nn.Module] = {f"{name}.": module for name, module in layers(model).items()}
    names: dict[nn.Module, list[str]] = {owner: [] for owner in (*owners.values(), policy)}
    for name in state:
        inside = max((prefix for prefix in owners if name.startswith(prefix)), key=len, default="")
        names[owners.get(inside, policy)].append(name)
    for owner, own in names.items():
        with _whole(owner):
            yield {name: attrgetter(name)(model) if is_sharded(policy) else state[name] for name in own}


@contextmanager
def _whole(module: nn.Module) -> Iterator[None]:
    """Gather the weights that a module shards itself, in the block."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()
