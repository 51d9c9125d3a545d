"""The settings of the policy, and their checks before weights are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rloop_lightning.model.adapter_folder import (
    base_of,
    is_adapter,
    quantization_faults,
    rank_of,
    source_faults,
    target_faults,
)
from rloop_lightning.model.adapter_packages import missing_bitsandbytes, missing_peft
from rloop_lightning.model.loading import is_folder, model_type
from rloop_lightning.model.lora import LoraSettings
from rloop_lightning.model.lora_targets import ALL_LINEAR
from rloop_lightning.model.routers import unknown_routers
from rloop_lightning.system.fetched import fetched
from rloop_lightning.system.fields import PositiveInt, check_fields
from rloop_lightning.system.store_errors import StoreError
from rloop_lightning.system.store_urls import is_url

RoutingReplayMode = Literal["none", "r2", "r3"]
Quantization = Literal["none", "nf4"]

EMBEDDED_MODEL = "countdown"
"""`--policy.model countdown` is the small policy that ships with the package."""


def embedded_model_path() -> Path:
    """The folder of the policy that ships with the package."""
    return Path(__file__).parents[1] / "assets" / "countdown-policy"


def model_source(name: str) -> str:
    """The folder or hub name that `--policy.model NAME` refers to. A URL is fetched to a folder.

    Raises:
        StoreError: it can't be fetched.
    """
    if is_url(name):
        return str(fetched(name, "--policy.model"))
    if name == EMBEDDED_MODEL:
        return str(embedded_model_path())
    return str(Path(name).expanduser()) if is_folder(name) else name


@dataclass(frozen=True)
class PolicyConfig:
    """The policy to train.

    Args:
        model: `countdown` for the small policy that ships with the package, a Hugging Face folder, a folder with an
            adapter (LoRA), which names its model, the URL of such a folder in a store (s3://BUCKET/MODEL), or a name
            on the hub.
        dtype: dtype of the weights. Updates of bfloat16 weights are rounded up or down at random, so that small ones
            are right on average and not lost. float32 with --trainer.precision bf16-mixed and --engine.dtype bfloat16
            is as fast and exact, in twice the memory. An adapter's weights are float32 in any case.
        max_tokens_per_micro_batch: tokens in one forward and backward pass; bounds the memory of a training step,
            whatever the batch size. A prompt counts once, however many rollouts share it. For a model that needs
            padded rollouts (the log says so), it counts padded tokens of prompt and completion. `auto` takes the figure
            of the memory plan (rloop-fit --plan).
        attn_implementation: attention kernel for generation and for padded rollouts in training; `sdpa` is PyTorch's,
            `eager` the model's own operations, `flash_attention_2` needs a GPU and its package.
        head_dtype: dtype of the product with the head, whose logits are the most sensitive to rounding; `auto` is
            float32 for a head of up to a million weights, and the dtype of the forward pass for a larger one.
        gradient_checkpointing: store only the inputs of layers for the backward pass, which recomputes the layers: a
            third more time for a fraction of the memory.
        routing_replay: which experts of a mixture of experts the updates of a rollout step use: those that the current
            policy chooses (`none`), those that the old policy chose when its logprobs were computed (`r2`), or those
            that the rollout engine generated with (`r3`).
        quantization: `nf4` keeps the weights of linear layers in 4 bits (NF4 with doubly quantised scales, QLoRA). It
            needs an adapter (--policy.lora.rank) and the package bitsandbytes. Products are computed in `dtype`.
        lora: the adapter to train instead of the weights of the model.
    """

    model: str = EMBEDDED_MODEL
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_tokens_per_micro_batch: PositiveInt | Literal["auto"] = 4096
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    head_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    routing_replay: RoutingReplayMode = "none"
    quantization: Quantization = "none"
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        check_fields(self, "--policy")


def policy_faults(config: PolicyConfig) -> list[str]:
    """Errors found before the policy's weights are read, one message each; for a hub name, only those found offline."""
    try:
        name = model_source(config.model)
    except StoreError as error:
        return str(error).splitlines()
    if faults := [*lora_faults(config), *source_faults(name)]:
        return faults
    return [*routing_faults(config), *lora_target_faults(config)] if is_folder(base_of(name)) else []


def lora_faults(config: PolicyConfig) -> list[str]:
    """Errors in the settings of an adapter that are seen without its files."""
    name, lora = model_source(config.model), config.lora
    adapter, rank = is_adapter(name), rank_of(name)
    if rank and lora.rank not in (0, rank):
        return [f"is an adapter of rank {rank}; leave out --policy.lora.rank {lora.rank}"]
    if lora.merge and not (adapter or lora.rank):
        return ["--policy.lora.merge true: there is no adapter to merge; set --policy.lora.rank, or leave it out"]
    if config.quantization != "none":
        if not (adapter or lora.rank):
            return [
                f"--policy.quantization {config.quantization}: quantised weights can't be trained; train an adapter "
                "(--policy.lora.rank 32), or leave it out"
            ]
        if missing := missing_bitsandbytes():
            return [f"--policy.quantization {config.quantization}: {missing}"]
    return [f"--policy.lora.rank {lora.rank}: {missing_peft()}"] if lora.rank and missing_peft() else []


def lora_target_faults(config: PolicyConfig) -> list[str]:
    """Layers that the model does not have, or that can't be quantised, found without weights."""
    base, lora = base_of(model_source(config.model)), config.lora
    if config.quantization != "none" and (faults := quantization_faults(base)):
        return [f"--policy.quantization {config.quantization}: {fault}" for fault in faults]
    return target_faults(base, lora.targets) if lora.rank and lora.targets != ALL_LINEAR else []


def routing_faults(config: PolicyConfig) -> list[str]:
    """An error if routing replay is set for a model without known routers."""
    if config.routing_replay == "none":
        return []
    return unknown_routers(model_type(base_of(model_source(config.model))))
