"""The policy: a Hugging Face causal LM and its tokenizer, as every algorithm and engine uses it.

    policy = Policy.load(PolicyConfig(model="path/or/name"))
    logprobs = policy.logprobs(batch).logprobs      # [B, T], nats, with gradients
    policy.save("folder")                           # a plain Hugging Face folder

Logprobs are computed on completion positions only (policy_scores.py): of a Llama-like model by llama.py over packed
rollouts, of any other by its own forward.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rloop_lightning.errors import RunFault
from rloop_lightning.model.llama import Llama
from rloop_lightning.model.loading import (
    is_folder,
    load_model,
    load_tokenizer,
    model_faults,
    model_type,
    vocabulary_faults,
)
from rloop_lightning.model.packing import packed_micro_batches
from rloop_lightning.model.routers import unknown_routers
from rloop_lightning.model.routing_replay import RoutingReplay
from rloop_lightning.model.scores import check_head, packed_scores, padded_scores
from rloop_lightning.system.checksums import write_checksums
from rloop_lightning.system.fields import PositiveInt, check_fields
from rloop_lightning.system.files import atomic_path
from rloop_lightning.types import RolloutBatch, TokenScores

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
            step, whatever the batch size. Of a Llama-like model, tokens without padding, a prompt once however many
            rollouts share it; of any other, padded tokens of prompt and completion.
        attn_implementation: the attention kernel of a model that is not Llama-like, for generation and training;
            `eager` is the fastest for short sequences on a CPU, `flash_attention_2` needs a GPU and its package.
        routing_replay: of a mixture of experts, which experts the updates of a rollout step compute with: those that
            the current policy chooses (`none`), that the policy chose which generated, when its old logprobs were
            computed (`r2`), or that the rollout engine generated with (`r3`).
    """

    model: str = EMBEDDED_MODEL
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_tokens_per_micro_batch: PositiveInt = 4096
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    routing_replay: RoutingReplayMode = "none"

    def __post_init__(self) -> None:
        check_fields(self, "--policy")


class Policy(nn.Module):
    """A causal LM and its tokenizer. Dropout stays off: logprobs must not depend on anything but the weights.

    Args:
        model: a Hugging Face causal LM.
        tokenizer: its tokenizer, with an EOS token.
        max_tokens_per_micro_batch: tokens that go through the model at once, as PolicyConfig counts them.
        source: folder or hub name that the weights came from.
        routing_replay: as in PolicyConfig.

    Raises:
        ValueError: the model can't be a policy, or its routing can't be replayed.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_tokens_per_micro_batch: int = 4096,
        source: str = "",
        routing_replay: RoutingReplayMode = "none",
    ) -> None:
        super().__init__()
        self.source = source
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self.stop_token_ids = _stop_token_ids(model, tokenizer)
        self.llama = Llama.of(model)
        if self.llama is None:
            check_head(model)
        self.routing = None if routing_replay == "none" else RoutingReplay(model, routing_replay)

    @classmethod
    def load(cls, config: PolicyConfig) -> Policy:
        """Load from a folder or the hub.

        Raises:
            ValueError, OSError: it can't be a policy, or can't be read; names all that is wrong.
        """
        name = model_source(config.model)
        if wrong := model_faults(name) or _routing_faults(config):
            raise ValueError("\n".join(wrong))
        on_gpu_alone = config.attn_implementation == "flash_attention_2"  # and models are looked at where they are read
        attention = "sdpa" if on_gpu_alone else config.attn_implementation
        model = load_model(name, dtype=getattr(torch, config.dtype), attn_implementation=attention)
        tokenizer = load_tokenizer(name)
        if wrong := vocabulary_faults(tokenizer, model.config.get_text_config()):  # of a hub name, only now
            raise ValueError("\n".join(wrong))
        policy = cls(model, tokenizer, config.max_tokens_per_micro_batch, name, config.routing_replay)
        if on_gpu_alone and policy.llama is None:
            try:
                model.set_attn_implementation(config.attn_implementation)
            except (ImportError, ValueError) as error:
                raise ValueError(f"--policy.attn_implementation {config.attn_implementation}: {error}") from error
        return policy

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def context_tokens(self) -> int:
        """The longest sequence that the model takes, tokens."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

    def train(self, mode: bool = True) -> Policy:
        """Keeps dropout off, whatever Lightning switches."""
        return super().train(False)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt; the template carries the special tokens."""
        return self.tokenizer.encode(prompt, add_special_tokens=False)

    def decode(self, completions: list[list[int]]) -> list[str]:
        """Texts of completions, without special tokens."""
        return self.tokenizer.batch_decode(completions, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def micro_batches(self, batch: RolloutBatch) -> Iterator[tuple[Tensor, RolloutBatch]]:
        """Row numbers and rows, in pieces that go through the model at once."""
        if self.llama is not None:
            return packed_micro_batches(batch, self.max_tokens_per_micro_batch)
        return batch.micro_batches(self.max_tokens_per_micro_batch)

    def logprobs(self, batch: RolloutBatch, *, entropy_gradient: bool = False) -> TokenScores:
        """Logprob and entropy of every completion token, at the batch's temperature.

        Logprobs have gradients; entropies have them only if `entropy_gradient`.
        The batch's experts are replayed, if it has any; with gradients, inside of `replaying(batch)` alone.
        """
        if batch.routed_experts is not None and self.routing is None:
            raise ValueError("the batch has experts to replay, which a policy of --policy.routing_replay none can't do")
        experts = None
        if self.llama is not None:
            logprobs, entropy = packed_scores(
                self.llama, batch, self._compute_dtype(), entropy_gradient=entropy_gradient
            )
        elif self.routing is not None:
            with self.routing.forward_pass(batch.input_ids.shape, batch) as passed:
                logprobs, entropy = padded_scores(self.model, batch, entropy_gradient=entropy_gradient)
            experts = passed.routed_experts
        else:
            logprobs, entropy = padded_scores(self.model, batch, entropy_gradient=entropy_gradient)
        places = batch.completion_mask.nonzero(as_tuple=True)
        empty = logprobs.new_zeros(batch.loss_mask.shape)
        return TokenScores(empty.index_put(places, logprobs), empty.index_put(places, entropy), experts)

    def replaying(self, batch: RolloutBatch) -> AbstractContextManager[None]:
        """Around `logprobs` of a micro-batch and its backward pass: both compute with the batch's experts.

        Where routing is not replayed, or the batch has no experts, it does nothing.
        """
        if self.routing is None or batch.routed_experts is None:
            return nullcontext()
        return self.routing.covering(batch)

    @property
    def wants_routed_experts(self) -> bool:
        """Whether rollouts must come with the experts that they were generated with: routing replay R3."""
        return self.routing is not None and self.routing.mode == "r3"

    def routing_mismatches(self, batch: RolloutBatch, scores: TokenScores) -> dict[str, Tensor]:
        """How often routers chose otherwise than what was replayed; nothing where nothing was."""
        if self.routing is None or scores.routed_experts is None:
            return {}
        return self.routing.mismatches(batch, scores.routed_experts)

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter (LoRA, by PEFT) is what is trained."""
        return isinstance(getattr(self.model, "peft_config", None), dict)

    def without_adapter(self) -> AbstractContextManager[None]:
        """Within it, the policy is what it was before it got its adapter."""
        return self.model.disable_adapter()

    @torch.no_grad()
    def scores_no_grad(self, batch: RolloutBatch) -> TokenScores:
        """`logprobs` of a batch of any size, without gradients."""
        logprobs, entropy = torch.zeros_like(batch.sampling_logprobs), torch.zeros_like(batch.sampling_logprobs)
        experts = None if self.routing is None else self.routing.empty_record(batch)
        for rows, micro in self.micro_batches(batch):
            scores, width = self.logprobs(micro), micro.loss_mask.shape[1]
            logprobs[rows, :width], entropy[rows, :width] = scores.logprobs, scores.entropy
            if experts is not None and scores.routed_experts is not None:
                experts[rows, : micro.input_ids.shape[1]] = scores.routed_experts
        return TokenScores(logprobs, entropy, experts)

    def _compute_dtype(self) -> torch.dtype:
        """bfloat16 under --trainer.precision bf16-mixed, else the weights' own."""
        device = self.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.model.dtype

    def load_weights(self, folder: Path | str) -> None:
        """Take over the weights of a folder that holds the same architecture."""
        self.model.load_state_dict(load_model(str(folder), dtype=self.model.dtype).state_dict())

    def save(self, folder: Path) -> None:
        """Save as a plain Hugging Face folder with checksums, which appears whole or not at all.

        Raises:
            RunFault: a weight is not finite.
            WriteError: the folder can't be written.
        """
        self.check_finite()
        with atomic_path(folder) as partial:
            try:
                self.model.save_pretrained(partial)
            except SafetensorError as error:  # which is how it says that a disk is full
                raise OSError(str(error)) from error
            self.tokenizer.save_pretrained(partial)
            write_checksums(partial)

    @torch.no_grad()
    def check_finite(self) -> None:
        """Make sure that every weight is a number.

        Raises:
            RunFault: names the first that is NaN or infinite.
        """
        if torch.isfinite(nn.utils.get_total_norm(self.parameters())):  # one wait for the device
            return
        for name, weight in self.model.named_parameters():
            if not weight.isfinite().all():
                raise RunFault(
                    f"the policy's weight {name} holds NaN or infinite values; policy and checkpoint are not saved. "
                    "The cause is a training step since the newest checkpoint: a learning rate that is too large "
                    "(--algo.lr, --consolidate.lr), or a callback of your own (--trainer.callbacks)"
                )


def policy_faults(config: PolicyConfig) -> list[str]:
    """What is wrong with a policy before its weights are read, one message each; of a hub name, what shows offline."""
    faults = model_faults(model_source(config.model))
    return faults if faults or not is_folder(model_source(config.model)) else _routing_faults(config)


def _routing_faults(config: PolicyConfig) -> list[str]:
    """Whether routing replay is asked for of a model that has no known routers."""
    return [] if config.routing_replay == "none" else unknown_routers(model_type(model_source(config.model)))


def _stop_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """EOS tokens of the tokenizer and of the model's generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    candidates = configured if isinstance(configured, list) else [configured]
    stop = frozenset(token for token in [*candidates, tokenizer.eos_token_id] if token is not None)
    if not stop:
        raise ValueError("neither the tokenizer nor generation_config.json names an EOS token")
    return stop
