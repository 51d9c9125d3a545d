"""The weighted average of two policies, tensor by tensor, in place.

    move_towards(policy, "round-0/explore/policy", share=0.5)       # theta + 0.5 (phi - theta); the policy holds theta

No more than one further model is in memory, the one that is read, as where weights are loaded.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rloop_lightning.model.loading import load_model
from rloop_lightning.model.lora import Adapter
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import copied, is_sharded, local

_B = ".lora_B."


@torch.no_grad()
def move_towards(policy: Policy, folder: Path, share: float) -> None:
    """Move a policy's weights theta to theta + share (phi - theta), phi those of a folder.

    Each tensor is computed in float32 at least, and rounded once. An adapter's product moves from 0: its B is scaled.
    All ranks of a sharded policy call it.

    Raises:
        ValueError: theta's adapter adds something to its model, so that no adapter of this rank is the average; or the
            folder can't be read.
    """
    if policy.adapter is not None:
        _scale_adapter(policy, policy.adapter, folder, share)
        return
    if is_sharded(policy):
        other_policy = copied(policy)
        other_policy.load_weights(folder)
        for weight, phi in zip(policy.parameters(), other_policy.parameters(), strict=True):
            _move(local(weight), local(phi), share)
        return
    others = load_model(str(folder), dtype=policy.model.dtype).state_dict()
    done: set[int] = set()
    for name, weight in policy.model.state_dict(keep_vars=True).items():
        other = others.pop(name)
        if not isinstance(weight, nn.Parameter) or id(weight) in done:  # tied weights have several names
            continue
        done.add(id(weight))
        _move(weight, other, share)


def _move(weight: Tensor, other: Tensor, share: float) -> None:
    wide = torch.promote_types(weight.dtype, torch.float32)
    start = weight.to(wide)
    weight.copy_(start + share * (other.to(weight.device, wide) - start))


def _scale_adapter(policy: Policy, adapter: Adapter, folder: Path, share: float) -> None:
    if has_product(adapter):
        raise ValueError(f"{folder}: the average of two trained adapters has up to twice their rank")
    policy.load_weights(folder)
    for name, weight in adapter.parameters.items():
        if _B in name:
            weight.mul_(share)


def has_product(adapter: Adapter) -> bool:
    """Whether an adapter adds anything to its model: a new one does not, since its B is 0."""
    return any(bool(weight.any()) for name, weight in adapter.parameters.items() if _B in name)
