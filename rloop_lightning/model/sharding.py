"""A policy whose weights are sharded over processes (ranks) by FSDP2.

    shard(policy, mesh)                     # each decoder layer, then the rest
    policy.logprobs(batch)                  # gathers a layer at a time; the backward pass sums gradients over ranks
    whole(weight)                           # the full tensor, gathered by all ranks

Gathering is collective: every rank must compute as many forward and backward passes, in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from rloop_lightning.model.policy import Policy


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Shard the weights of a policy over a mesh, and its gradients, which are summed over the ranks.

    A policy that is sharded stays as it is. All ranks call it, with the same weights.

    Args:
        mesh: one dimension, over which weights are sharded; or two, over the first of which shards are replicated
            (HSDP).
    """
    if is_sharded(policy):
        return
    policy.skeleton = (_with_weights(policy, lambda weight: torch.empty_like(weight, device="meta")),)
    trained = next((weight.dtype for weight in policy.parameters() if weight.requires_grad), torch.float32)
    # Gradients of bfloat16 weights are summed over ranks in float32.
    precision = MixedPrecisionPolicy(reduce_dtype=torch.promote_types(trained, torch.float32))
    for module in (*reversed(layers(policy).values()), policy):
        # True for the policy, too: after a pass without gradients, all parameters are shards again.
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
        sharded.set_gradient_divide_factor(1.0)  # a sum over ranks, not the mean
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_reduce_scatter_unused_params(True)  # of an expert that no token of this rank was routed to
    register_fsdp_forward_method(policy, "logprobs")


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)}


def is_sharded(policy: object) -> bool:
    """Whether `shard` has sharded a policy."""
    return isinstance(policy, FSDPModule)


def leads(module: nn.Module) -> bool:
    """Whether this rank reads and writes the files of a module: rank 0 if it is sharded, else any."""
    sharded = any(isinstance(weight, DTensor) for weight in module.parameters())
    return not sharded or torch.distributed.get_rank() == 0


@torch.no_grad()
def copied(policy: Policy) -> Policy:
    """A copy of a policy with weights of its own, sharded as the policy is."""
    if not is_sharded(policy):
        return copy.deepcopy(policy)
    new = copy.deepcopy(_skeleton(policy))
    shard(new, mesh_of(policy))
    for weight in new.parameters():  # on the device meta
        torch.utils.swap_tensors(
            weight, nn.Parameter(torch.empty_like(weight, device=policy.device), weight.requires_grad)
        )
    copy_weights(policy, new)
    return new


def whole_copy(policy: Policy) -> Policy:
    """A copy of a sharded policy that is not sharded; `gather_weights` gives it weights."""
    return _with_weights(_skeleton(policy), lambda weight: torch.empty_like(weight, device=policy.device))


@torch.no_grad()
def gather_weights(policy: Policy, whole_policy: Policy, *, trained_only: bool = False) -> None:
    """Give a whole copy the weights of a sharded policy, one tensor at a time. All ranks call it."""
    for weight, own in zip(policy.parameters(), whole_policy.parameters(), strict=True):
        if weight.requires_grad or not trained_only:
            own.copy_(whole(weight))


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy weights to a module of the same structure, sharded in the same way."""
    for weight, own in zip(source.parameters(), target.parameters(), strict=True):
        local(own).copy_(local(weight))


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a shard, gathered by all ranks; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in the same memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def assign(weight: Tensor, value: Tensor) -> None:
    """Set a weight to a full tensor that every rank has."""
    if isinstance(weight, DTensor):
        value = distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)
    local(weight).copy_(local(value))


@torch.no_grad()
def scatter(weight: Tensor, value: Tensor | None) -> None:
    """Set a weight to the full tensor of rank 0, if it is sharded. All ranks call it; only rank 0 needs the value."""
    if isinstance(weight, DTensor):
        if value is None:
            value = torch.empty(weight.shape)
        value = value.to(weight.device, weight.dtype)
        value = distribute_tensor(value, weight.device_mesh, weight.placements)
    assert value is not None
    local(weight).copy_(local(value))


def shard_number(tensor: Tensor) -> int:
    """Which of a tensor's shards this rank has, from 0; 0 of any other tensor."""
    number = 0
    if isinstance(tensor, DTensor):
        mesh = tensor.device_mesh
        for dimension, placement in enumerate(tensor.placements):
            if placement.is_shard():
                number = number * mesh.size(dimension) + mesh.get_local_rank(dimension)
    return number


def mesh_of(policy: nn.Module) -> DeviceMesh:
    """The mesh over which a policy is sharded."""
    weight = next(policy.parameters())
    assert isinstance(weight, DTensor)
    return weight.device_mesh


def _skeleton(policy: Policy) -> Policy:
    assert policy.skeleton is not None
    return policy.skeleton[0]


def _with_weights(policy: Policy, make: Callable[[nn.Parameter], Tensor]) -> Policy:
    """A deep copy of a policy with other weights, none of which is copied."""
    made = {id(weight): nn.Parameter(make(weight), weight.requires_grad) for weight in policy.parameters()}
    return copy.deepcopy(policy, made)
