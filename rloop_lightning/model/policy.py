"""The policy that all algorithms and engines use: a Hugging Face causal LM and its tokenizer.

    policy = Policy.load(PolicyConfig(model="path/or/name"))
    logprobs = policy.logprobs(batch).logprobs      # [B, T], nats, with gradients
    policy.save("folder")                           # a plain Hugging Face folder

Rollouts go through the model's own modules packed into one row, with each prompt once (packed_attention.py), or padded
if the model can't take packed rows (agreement.py). Logprobs are of completion positions only (head.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from rloop_lightning.errors import NonFiniteError
from rloop_lightning.model.adapter_folder import base_of
from rloop_lightning.model.agreement import small_batch, takes_packed_rows
from rloop_lightning.model.checkpointing import recomputing
from rloop_lightning.model.config import PolicyConfig, RoutingReplayMode
from rloop_lightning.model.context import context_of
from rloop_lightning.model.fused import fuse
from rloop_lightning.model.head import Head
from rloop_lightning.model.kept_tokens import KeptTokens
from rloop_lightning.model.lora import Adapter, leave_out_frozen
from rloop_lightning.model.packed_attention import switch_attention
from rloop_lightning.model.packing import MicroBatches, pack, packed_micro_batches
from rloop_lightning.model.reading import read_weights
from rloop_lightning.model.routing_replay import ForwardPass, RoutingReplay
from rloop_lightning.model.saving import check_finite, gather_for_writer, write_weights
from rloop_lightning.model.scores import completion_tokens, packed_states, padded_states
from rloop_lightning.model.sharding import leads
from rloop_lightning.model.source import load_source
from rloop_lightning.model.stop_tokens import ends_of_completions
from rloop_lightning.system.folders import write_folder
from rloop_lightning.system.terminal import cause, printable
from rloop_lightning.types import Problem, RolloutBatch, TokenScores

_NOT_FINITE = (
    "{} computes NaN or infinite logprobs in {}; correct the numbers of config.json, such as those of rope_parameters, "
    "or take another --policy.dtype"
)


class Policy(nn.Module):
    """A causal LM and its tokenizer. Dropout stays off: logprobs must depend on the weights only.

    Args:
        model: a Hugging Face causal LM, or a PEFT model with one LoRA adapter on it.
        tokenizer: its tokenizer, with an EOS token.
        max_tokens_per_micro_batch: tokens per forward pass, counted as in PolicyConfig.
        source: folder or hub name of the weights.
        routing_replay: as in PolicyConfig.
        head_dtype: dtype of the product with the head; None is `auto` in PolicyConfig.
        gradient_checkpointing: as in PolicyConfig.
        adapter: the adapter whose layers the model has; None if it has none, or is a PEFT model.

    Raises:
        ValueError: the model is not usable as a policy, or its routing can't be replayed.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_tokens_per_micro_batch: int = 4096,
        source: str = "",
        routing_replay: RoutingReplayMode = "none",
        head_dtype: torch.dtype | None = None,
        gradient_checkpointing: bool = False,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.adapter = Adapter(model) if adapter is None and hasattr(model, "get_base_model") else adapter
        model = model if self.adapter is None else self.adapter.base_model
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self.stop_token_ids = ends_of_completions(model, tokenizer)
        self.context = context_of(model.config.get_text_config())
        self.head = Head.of(model, head_dtype)
        self.packs = takes_packed_rows(model, self.head)
        fuse(model)
        self.routing = None if routing_replay == "none" else RoutingReplay(model, routing_replay)
        self.mixed_precision: torch.dtype | None = None  # dtype of the updates, if it differs from the weights'
        self.recomputes = gradient_checkpointing
        self.merges = False  # whether a run also hands over its final policy with the adapter merged
        self.skeleton: tuple[Policy] | None = None  # once sharded: itself without weights, in a tuple as it's no part
        if self.adapter is not None:
            leave_out_frozen(self)

    @classmethod
    def load(cls, config: PolicyConfig) -> Policy:
        """Load from a folder or the hub.

        Raises:
            ValueError, OSError: it is not usable as a policy or can't be read; names all errors.
        """
        if config.max_tokens_per_micro_batch == "auto":
            raise ValueError("--policy.max_tokens_per_micro_batch auto: only a run has a memory plan; give a number")
        source = load_source(config)
        try:
            policy = cls(
                source.model,
                source.tokenizer,
                config.max_tokens_per_micro_batch,
                source.name,
                config.routing_replay,
                None if config.head_dtype == "auto" else getattr(torch, config.head_dtype),
                config.gradient_checkpointing,
                source.adapter,
            )
            policy.check_logprobs(small_batch(policy.model))
        except NonFiniteError as error:
            raise ValueError(_NOT_FINITE.format(type(source.model).__name__, config.dtype)) from error
        except ValueError as error:
            raise ValueError(printable(str(error), limit=2000)) from error
        except Exception as error:  # the model's code may raise anything for a config that its weights don't fit
            what = f"{type(source.model).__name__} can't be used as a policy"
            raise ValueError(f"{what}: {cause(error)}; correct config.json, or take another model") from error
        policy.merges = config.lora.merge
        if config.attn_implementation == "flash_attention_2":
            try:
                switch_attention(policy.model, config.attn_implementation, packs=policy.packs)
            except (ImportError, ValueError) as error:
                raise ValueError(f"--policy.attn_implementation {config.attn_implementation}: {error}") from error
        return policy

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def context_tokens(self) -> int:
        """The maximum length of prompt and completion, tokens."""
        return self.context.tokens

    def train(self, mode: bool = True) -> Policy:
        """Keep dropout off, even when Lightning switches to training mode."""
        return super().train(False)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt, which contains its special tokens already."""
        return self.tokenizer.encode(prompt, add_special_tokens=False)

    def prompt_ids(self, problem: Problem) -> list[int]:
        """Token ids of a rendered prompt, with those of special tokens that its problem names as text left plain."""
        return self.encode(problem.prompt) if problem.prompt_ids is None else list(problem.prompt_ids)

    def decode(self, completions: list[list[int]]) -> list[str]:
        """The texts of completions, without special tokens."""
        return self.tokenizer.batch_decode(completions, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def micro_batches(self, batch: RolloutBatch) -> MicroBatches:
        """Micro-batches within the token budget."""
        if self.packs:
            return packed_micro_batches(batch, self.max_tokens_per_micro_batch)
        return batch.micro_batches(self.max_tokens_per_micro_batch)

    def logprobs(self, batch: RolloutBatch, *, entropy_gradient: bool = False) -> TokenScores:
        """Logprob and entropy of every completion token, at the batch's temperature and among its kept tokens.

        Logprobs have gradients; entropies have them only with `entropy_gradient`. If the batch has routed experts, they
        are replayed; with gradients on, this needs `replaying(batch)` around it.
        """
        if batch.routed_experts is not None and self.routing is None:
            raise ValueError("the batch has experts to replay, which a policy of --policy.routing_replay none can't do")
        recomputed = recomputing(self.model) if self.recomputes and torch.is_grad_enabled() else nullcontext()
        with recomputed, nullcontext() if self.adapter is None else self.adapter.products():
            hidden, experts = self._states(batch)  # [N, H]
        temperature = batch.temperature or 1.0
        logprobs, entropy = self.head.scores(
            self.model,
            hidden,
            completion_tokens(batch),
            temperature,
            self.compute_dtype,
            kept=KeptTokens.of(batch),
            entropy_gradient=entropy_gradient,
        )
        places = batch.completion_mask.nonzero(as_tuple=True)
        empty = logprobs.new_zeros(batch.loss_mask.shape)
        return TokenScores(empty.index_put(places, logprobs), empty.index_put(places, entropy), experts)

    def _states(self, batch: RolloutBatch) -> tuple[Tensor, Tensor | None]:
        """The hidden states [N, H] that predict completion tokens, and the routers' choices [B, L, layers, top_k]."""
        columns = batch.input_ids.shape[1]
        if not self.packs:
            with self._routed(batch.input_ids.numel(), batch, lambda values: values.flatten(0, 1)) as passed:
                hidden = padded_states(self.model, batch)
            return hidden, None if passed is None else passed.chosen.unflatten(0, (-1, columns))
        packed = pack(batch)
        with self._routed(len(packed.input_ids), batch, packed.gather) as passed:
            hidden = packed_states(self.model, packed)
        return hidden, None if passed is None else packed.scatter(passed.chosen, columns)

    def _routed(
        self, count: int, batch: RolloutBatch, gather: Callable[[Tensor], Tensor]
    ) -> AbstractContextManager[ForwardPass | None]:
        """A context around a forward pass that records its routers, if routing is replayed."""
        return nullcontext() if self.routing is None else self.routing.forward_pass(count, batch, gather)

    def replaying(self, batch: RolloutBatch) -> AbstractContextManager[None]:
        """A context around `logprobs` of a micro-batch and its backward pass: both use the batch's experts.

        It does nothing if routing is not replayed or the batch has no experts.
        """
        if self.routing is None or batch.routed_experts is None:
            return nullcontext()
        return self.routing.covering(batch)

    @property
    def wants_routed_experts(self) -> bool:
        """Whether the engine must report the experts of its rollouts (routing replay R3)."""
        return self.routing is not None and self.routing.mode == "r3"

    def routing_mismatches(self, batch: RolloutBatch, scores: TokenScores) -> dict[str, Tensor]:
        """How often the routers' choices differ from the replayed experts; empty without replay."""
        if self.routing is None or scores.routed_experts is None:
            return {}
        return self.routing.mismatches(batch, scores.routed_experts)

    @torch.no_grad()
    def scores_no_grad(self, batch: RolloutBatch, micro_batches: MicroBatches | None = None) -> TokenScores:
        """`logprobs` of a batch of any size, without gradients.

        Args:
            micro_batches: those to compute; by default those of all rows. Rows that are left out score 0.
        """
        logprobs, entropy = torch.zeros_like(batch.sampling_logprobs), torch.zeros_like(batch.sampling_logprobs)
        experts = None if self.routing is None else self.routing.empty_record(batch)
        for rows, micro in self.micro_batches(batch) if micro_batches is None else micro_batches:
            scores, width, count = self.logprobs(micro), micro.loss_mask.shape[1], len(rows)
            logprobs[rows, :width], entropy[rows, :width] = scores.logprobs[:count], scores.entropy[:count]
            if experts is not None and scores.routed_experts is not None:
                experts[rows, : micro.input_ids.shape[1]] = scores.routed_experts[:count]
        return TokenScores(logprobs, entropy, experts)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of matrix products: bfloat16 under --trainer.precision bf16-mixed, else the weights' dtype."""
        device = self.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.mixed_precision or self.model.dtype

    def load_weights(self, folder: Path | str) -> None:
        """Load the weights of a folder as `read_weights` does. All ranks of a sharded policy call it."""
        read_weights(self, str(folder))

    def save(self, folder: Path, texts: Mapping[str, str] = MappingProxyType({}), *, merge: bool = False) -> None:
        """Save as a plain Hugging Face folder with checksums. A new folder appears whole or not at all.

        In an existing folder, the policy's files are replaced and other files stay (folders.py). All ranks of a sharded
        policy call it, and rank 0 writes.

        Args:
            texts: further files by name; one replaces the model's or tokenizer's own of that name.
            merge: with an adapter, save the model with the adapter merged into it; false saves the adapter alone.

        Raises:
            NonFiniteError: a weight is not finite.
            WriteError: the folder can't be written.
        """
        self.check_finite()
        if not leads(self):
            gather_for_writer(self, merge=merge)
            return
        with write_folder(folder) as partial:
            write_weights(self, partial, base=base_of(self.source), merge=merge)
            self.tokenizer.save_pretrained(partial)
            for name, text in texts.items():
                (partial / name).write_text(text, encoding="utf-8")

    def check_finite(self) -> None:
        """Check that every trained weight is finite.

        Raises:
            NonFiniteError: names the first weight that is NaN or infinite.
        """
        check_finite(self.model)

    @torch.no_grad()
    def check_logprobs(self, batch: RolloutBatch) -> None:
        """Check that the logprobs of a batch are finite. Finite weights can give NaN logits.

        Raises:
            NonFiniteError: they are NaN or infinite.
        """
        if not self.scores_no_grad(batch).logprobs.isfinite().all():
            raise NonFiniteError("the policy's weights are finite, but its logits are NaN or infinite")
