"""The settings of the policy, and what is wrong with them before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rloop_lightning.model.loading import is_folder, model_faults, model_type
from rloop_lightning.model.routers import unknown_routers
from rloop_lightning.system.fields import PositiveInt, check_fields

RoutingReplayMode = Literal["none", "r2", "r3"]

EMBEDDED_MODEL = "countdown"
"""`--policy.model countdown` names the small policy that the package carries."""


def embedded_model_path() -> Path:
    """The folder of the policy that the package carries."""
    return Path(__file__).parents[1] / "assets" / "countdown-policy"


def model_source(name: str) -> str:
    """The folder or hub name that `--policy.model NAME` means."""
    if name == EMBEDDED_MODEL:
        return str(embedded_model_path())
    return str(Path(name).expanduser()) if is_folder(name) else name


@dataclass(frozen=True)
class PolicyConfig:
    """The policy that is trained.

    Args:
        model: `countdown` for the small policy that the package carries, a Hugging Face folder, or a name on the hub.
        dtype: of the weights and of the optimizer's state. bfloat16 loses updates of less than a 256th of a weight in
            rounding, which at usual learning rates are most; float32 with --trainer.precision bf16-mixed and
            --engine.dtype bfloat16 computes as fast.
        max_tokens_per_micro_batch: tokens that go through forward and backward at once; bounds the memory of a training
            step, whatever the batch size. A prompt counts once, however many rollouts share it. Where a model takes
            padded rollouts alone (the log says so), padded tokens of prompt and completion.
        attn_implementation: the attention kernel of generation and of padded rollouts in training; `sdpa` is PyTorch's,
            `eager` the model's own operations, `flash_attention_2` needs a GPU and its package.
        head_dtype: of the product with the head, whose logits are where rounding shows most; `auto` is float32 for a
            head of up to a million weights, and that of the forward pass for a larger one.
        gradient_checkpointing: keep the inputs of layers alone for the backward pass, which computes the layers anew;
            a third more time for a fraction of the memory.
        routing_replay: of a mixture of experts, which experts the updates of a rollout step compute with: those that
            the current policy chooses (`none`), that the policy chose which generated, when its old logprobs were
            computed (`r2`), or that the rollout engine generated with (`r3`).
    """

    model: str = EMBEDDED_MODEL
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_tokens_per_micro_batch: PositiveInt = 4096
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    head_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    routing_replay: RoutingReplayMode = "none"

    def __post_init__(self) -> None:
        check_fields(self, "--policy")


def policy_faults(config: PolicyConfig) -> list[str]:
    """What is wrong with a policy before its weights are read, one message each; of a hub name, what shows offline."""
    faults = model_faults(model_source(config.model))
    return faults if faults or not is_folder(model_source(config.model)) else routing_faults(config)


def routing_faults(config: PolicyConfig) -> list[str]:
    """Whether routing replay is asked for of a model that has no known routers."""
    return [] if config.routing_replay == "none" else unknown_routers(model_type(model_source(config.model)))
