"""The weights of a policy whole, a layer at a time, whether they are sharded or not.

    for weights in plain_weights(policy):       # name -> tensor
        ...
    described(policy)                           # the same names, dtypes and shapes, without numbers

Of a sharded policy, every rank holds one layer at a time. Gathering is collective: all ranks call it, and go to the
end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rloop_lightning.model.lora import merged, under_adapter
from rloop_lightning.model.quantization import is_quantised
from rloop_lightning.model.sharding import is_sharded, layers

if TYPE_CHECKING:
    from rloop_lightning.model.policy import Policy


@torch.no_grad()
def plain_weights(policy: Policy) -> Iterator[dict[str, Tensor]]:
    """The weights that a policy computes with, under the names of its Hugging Face model: of each layer, then others.

    An adapter is merged, 4-bit weights are dequantised, and tied weights have one name. Those of a sharded policy are
    valid until the next ones.
    """
    model, adapter, kept = policy.model, policy.adapter, described(policy)
    state = model.state_dict(keep_vars=True)
    for owner, names in _owners(policy).items():
        with _whole(owner):
            own = {name: attrgetter(name)(model) if is_sharded(policy) else state[name] for name in names}
            plain = own if adapter is None else merged(adapter, own)
            yield {name: weight.detach() for name, weight in plain.items() if name in kept}


def described(policy: Policy) -> dict[str, Tensor]:
    """What `plain_weights` gives, in its order, as tensors on the device meta. Nothing is gathered."""
    model, adapter = policy.model, policy.adapter
    state = model.state_dict(keep_vars=True)
    weights: dict[str, Any] = {name: state[name] for names in _owners(policy).values() for name in names}
    if adapter is not None:
        weights = under_adapter(adapter, weights)
    names: dict[int, list[str]] = defaultdict(list)
    for name, weight in weights.items():
        names[id(weight)].append(name)
    left_out = set(model._keys_to_ignore_on_save or ())
    for tied in names.values():
        targets = [name for name in tied if name in model.all_tied_weights_keys]
        left_out |= set(targets if len(targets) < len(tied) else tied[1:])
    return {name: meta(weight) for name, weight in weights.items() if name not in left_out}


def meta(weight: Any) -> Tensor:
    """A tensor of the dtype and shape that a weight has whole and dequantised, on the device meta."""
    held = weight.quant_state if is_quantised(weight) else weight
    return torch.empty(held.shape, dtype=held.dtype, device="meta")


def _owners(policy: Policy) -> dict[nn.Module, list[str]]:
    """The names of the weights that each layer, and at last the policy, gathers."""
    prefixes: dict[str, nn.Module] = {f"{name}.": module for name, module in layers(policy.model).items()}
    owners: dict[nn.Module, list[str]] = {owner: [] for owner in (*prefixes.values(), policy)}
    for name in policy.model.state_dict(keep_vars=True):
        inside = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default="")
        owners[prefixes.get(inside, policy)].append(name)
    return owners


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
