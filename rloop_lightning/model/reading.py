"""The weights of a folder into a policy that is loaded. Of a sharded policy, rank 0 alone reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rloop_lightning.model.adapter_folder import is_adapter, read_adapter
from rloop_lightning.model.loading import load_model
from rloop_lightning.model.sharding import is_sharded, leads, scatter

if TYPE_CHECKING:
    from rloop_lightning.model.policy import Policy


@torch.no_grad()
def read_weights(policy: Policy, folder: str) -> None:
    """Load the weights of a folder with the same architecture; with an adapter, those of the adapter.

    With an adapter, the folder of the model itself sets the adapter to its initial weights.

    Raises:
        RuntimeError: the folder has other weights.
    """
    if policy.adapter is not None:
        if is_adapter(folder):
            read_adapter(policy.adapter, Path(folder))
        else:
            policy.adapter.reset()
    elif is_sharded(policy):
        _scatter_model(policy, folder)
    else:
        policy.model.load_state_dict(load_model(folder, dtype=policy.model.dtype).state_dict())


def _scatter_model(policy: Policy, folder: str) -> None:
    own = policy.model.state_dict(keep_vars=True)
    held = load_model(folder, dtype=policy.model.dtype).state_dict() if leads(policy) else {}
    if held and {name: weight.shape for name, weight in own.items()} != {name: w.shape for name, w in held.items()}:
        raise RuntimeError(f"{folder} holds weights of another architecture than {type(policy.model).__name__}'s")
    for name, weight in own.items():
        scatter(weight, held.pop(name, None))
