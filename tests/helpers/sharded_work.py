"""What ranks do in the tests of sharded policies. Each function gets its rank first."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from builders import make_model, make_policy, make_problems, make_tokenizer, random_batch
from moe import make_moe, make_moe_policy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rloop_lightning.algorithms.shares import micro_batches
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.engines.vllm.weights import NamedWeights, fingerprint
from rloop_lightning.errors import NonFiniteError
from rloop_lightning.model.lora import LoraSettings, add_adapter
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.sharding import local, shard, whole
from rloop_lightning.types import RolloutBatch


def build(kind: str, **changes: Any) -> Policy:
    """A tiny policy of a kind: `dense`, `moe` or `lora`, then maybe an architecture, and words of `_CHANGES`."""
    first, *words = kind.split()
    settings: dict[str, Any] = {"dtype": torch.float32, "num_hidden_layers": 3, **changes}
    settings["architecture"] = (
        words.pop(0) if words and words[0][0].isupper() else "Qwen3Moe" if "moe" in kind else "Qwen2"
    )
    for word in words:
        settings |= _CHANGES.get(word, {})
    recomputes = settings.pop("recomputes", False)
    if first == "moe":
        policy = make_moe_policy(routing_replay=settings.pop("routing_replay", "none"), **settings)
    elif first == "lora":
        model = (make_moe if "moe" in words else make_model)(**settings)
        adapter = add_adapter(model, LoraSettings(rank=4))
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for weight in adapter.parameters.values():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        policy = Policy(model, make_tokenizer(), 16384, adapter=adapter)
    else:
        policy = make_policy(**settings)
    policy.recomputes = recomputes
    policy.packs = policy.packs and "padded" not in words
    return policy


_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "checkpointed": {"recomputes": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "replayed": {"routing_replay": "r2"},
}


def mesh_over(world: int, replicas: int = 1) -> DeviceMesh:
    if replicas == 1:
        return init_device_mesh("cpu", (world,), mesh_dim_names=("shards",))
    return init_device_mesh("cpu", (replicas, world // replicas), mesh_dim_names=("replicas", "shards"))


def sharded(kind: str, world: int, replicas: int = 1, **changes: Any) -> Policy:
    policy = build(kind, **changes)
    shard(policy, mesh_over(world, replicas))
    return policy


def backward(policy: Policy, batch: RolloutBatch) -> Tensor:
    """The gradient of a weighted sum of the batch's logprobs, over all ranks, as one vector in float64."""
    for _, micro in micro_batches(policy, batch):
        logprobs = policy.logprobs(micro).logprobs
        (logprobs * micro.advantages[:, None]).masked_fill(~micro.loss_mask, 0).sum().backward()
    return torch.cat([whole(p.grad).flatten().double() for p in policy.parameters() if p.grad is not None])


def gradient_of(rank: int, kind: str, world: int, replicas: int, tokens: int, rows: list[int] | None) -> Tensor:
    policy = sharded(kind, world, replicas)
    policy.max_tokens_per_micro_batch = tokens
    batch = random_batch()
    return backward(policy, batch if rows is None else batch.select(torch.tensor(rows)))


def save(rank: int, kind: str, world: int, folder: Path, merge: bool, replicas: int = 1) -> None:
    sharded(kind, world, replicas).save(folder, merge=merge)


def load(rank: int, kind: str, world: int, folder: Path, replicas: int = 1) -> Tensor:
    """The weights of a policy that was another and took over those of a folder, as one vector."""
    policy = sharded(kind, world, replicas)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.zero_()
    if rank > 0:
        no_file_may_be_read(folder)
    policy.load_weights(folder)
    return vector(policy)


def vector(policy: Policy) -> Tensor:
    return torch.cat([whole(weight.detach()).flatten() for weight in policy.parameters()])


def no_file_may_be_read(folder: Path) -> None:
    """From now on, this process finds no such folder."""

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(folder) in str(args[0]):
            raise AssertionError(f"{args[0]} is read")

    sys.addaudithook(refuse)


def generate(rank: int, kind: str, world: int, number: int) -> list[Any]:
    """Rollouts of a sharded policy, before and after its weights have changed."""
    policy = sharded(kind, world) if world > 1 else build(kind)
    engine = TorchEngine(max_new_tokens=6)
    engine.bind(policy)
    found = []
    for _ in range(number):
        engine.sync()
        rollouts = engine.generate(make_problems(3), 2, engine.sampling(seed=5))
        found.append([(rollout.completion_ids.tolist(), rollout.sampling_logprobs.tolist()) for rollout in rollouts])
        change(policy)
    return found


@torch.no_grad()
def change(policy: Policy) -> None:
    """Move the trained weights, alike on all ranks."""
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.mul_(1.5)


def push(rank: int, kind: str, world: int) -> tuple[dict[str, Tensor], list[Any], list[int]]:
    """What is pushed to an engine, as it comes; what was told of it before; fingerprints before and after a change."""
    policy = sharded(kind, world) if world > 1 else build(kind)
    named = NamedWeights(policy)
    told = [(name, weight.dtype, weight.shape) for name, weight in named.described()]
    prints = [fingerprint(policy)]
    change(policy)
    pushed = {name: weight.clone() for name, weight in named}
    prints += [fingerprint(policy), fingerprint(policy)]
    return pushed, told, prints


def spoil(rank: int, kind: str, world: int) -> str:
    """What is said of a policy with one weight that is not finite, which is in the shard of the last rank."""
    policy = sharded(kind, world)
    policy.check_finite()
    weight = local(policy.get_parameter("model.model.layers.1.mlp.up_proj.weight"))
    if rank == world - 1:
        with torch.no_grad():
            weight[-1, 0] = float("nan")
    try:
        policy.check_finite()
    except NonFiniteError as error:
        return str(error)
    return ""
