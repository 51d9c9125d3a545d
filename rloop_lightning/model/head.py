"""The head of a causal LM: from last hidden states to logits and token logprobs.

    head = Head.of(model, dtype=None)                       # checked against the model's own logits
    head.scores(model, hidden, targets, temperature, torch.float32)      # logprobs and entropies [N]
    logits = head.open(model, torch.float32)                # casts its weights once ...
    logits(hidden)                                          # ... for many calls, [..., V] float32

Logits [N, V] with gradients are never materialised as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from rloop_lightning.model.kept_tokens import KeptTokens, gather_logits
from rloop_lightning.model.token_scores import token_scores

# A head of up to this many weights is cheap in float32, and logits are the most sensitive to rounding.
_FLOAT32_WEIGHTS = 2**20
# Logits per chunk for a head that is not a plain product: 64 MiB in float32, whatever the vocabulary size.
_LOGITS_PER_CHUNK = 2**24


@dataclass(frozen=True)
class Head:
    """How a model computes logits from its last hidden states.

    Args:
        scale: factor of the logits.
        softcap: c caps the logits by c tanh(logit / c); None does not.
        dtype: dtype of the product; None is float32 for a small head, else the dtype of the forward pass.
    """

    scale: float = 1.0
    softcap: float | None = None
    dtype: torch.dtype | None = None

    @classmethod
    def of(cls, model: Any, dtype: torch.dtype | None = None) -> Self:
        """The head of a Hugging Face causal LM.

        Raises:
            ValueError: the model computes its logits in an unknown way.
        """
        config = model.config.get_text_config()
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        cls(scale, softcap)._check(model)
        return cls(scale, softcap, dtype)

    def open(self, model: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """A function from hidden states [..., H] to logits, float32 [..., V], with the current weights.

        Args:
            dtype: dtype of the forward pass.
        """
        module: Any = model.get_output_embeddings()
        if not _is_linear(module):  # an adapter or quantised weights: the module multiplies in its own way and dtype
            return lambda hidden: self._behind(module(hidden))
        dtype = self._dtype(module.weight, dtype)
        weight = module.weight.to(dtype)
        bias = None if module.bias is None else module.bias.to(dtype)

        def logits(hidden: Tensor) -> Tensor:
            with torch.autocast(hidden.device.type, enabled=False):
                return self._behind(linear(hidden.to(dtype), weight, bias))

        return logits

    def scores(
        self,
        model: Any,
        hidden: Tensor,
        targets: Tensor,
        temperature: float,
        dtype: torch.dtype,
        *,
        kept: KeptTokens | None = None,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Logprobs of the targets and entropies of their distributions; float32, nats, both [N].

        Args:
            hidden: [N, H].
            targets: [N] int64.
            temperature: divides the logits.
            dtype: dtype of the forward pass.
            kept: the tokens of each distribution; None is the whole vocabulary.
            entropy_gradient: whether entropies have gradients as well.
        """
        module: Any = model.get_output_embeddings()
        if _is_linear(module) and module.bias is None and self.softcap is None:
            weight = module.weight.to(self._dtype(module.weight, dtype))
            temperature = temperature / self.scale
            with torch.autocast(hidden.device.type, enabled=False):
                if kept is None:
                    return token_scores(hidden, weight, targets, temperature, entropy_gradient=entropy_gradient)
                return kept.scores(
                    gather_logits(hidden, weight, kept, temperature), targets, entropy_gradient=entropy_gradient
                )
        size = max(1, _LOGITS_PER_CHUNK // model.config.get_text_config().vocab_size)  # rows
        score = partial(_score, self.open(model, dtype), temperature=temperature, entropy_gradient=entropy_gradient)
        states = hidden.split(size)
        parts = [None] * len(states) if kept is None else kept.split(size)
        pieces = [
            checkpoint(score, *piece, use_reentrant=False, preserve_rng_state=False)
            for piece in zip(states, targets.split(size), parts, strict=True)
        ]
        logprobs, entropies = zip(*pieces, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _dtype(self, weight: Tensor, dtype: torch.dtype) -> torch.dtype:
        if self.dtype is not None:
            return self.dtype
        return torch.promote_types(dtype, torch.float32) if weight.numel() <= _FLOAT32_WEIGHTS else dtype

    def _behind(self, logits: Tensor) -> Tensor:
        """Scale and soft cap, after the product."""
        logits = logits.float() * self.scale if self.scale != 1 else logits.float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        ids = torch.arange(4, device=next(model.parameters()).device)[None]
        expected = model(input_ids=ids, use_cache=False).logits.float()
        if not expected.isfinite().all():
            raise ValueError(
                f"{type(model).__name__} computes NaN or infinite logits: its weights are damaged, or overflow in "
                f"{str(model.dtype).removeprefix('torch.')} (--policy.dtype)"
            )
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        if not torch.allclose(
            self.open(model, hidden.dtype)(hidden), expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())
        ):
            raise ValueError(
                f"{type(model).__name__} changes its logits after the output embedding in an unknown way; "
                "its logprobs would be wrong"
            )


def _is_linear(module: object) -> bool:
    """Whether a module is a plain product. A subclass (an adapter, quantised weights) computes something else."""
    return type(module) is nn.Linear


def _score(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    kept: KeptTokens | None,
    *,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    logits = logits_of(hidden) / temperature  # [n, V]
    if kept is not None:
        return kept.scores(logits[kept.places, kept.token_ids], targets, entropy_gradient=entropy_gradient)
    logprobs = -cross_entropy(logits, targets, reduction="none")
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = torch.distributions.Categorical(logits=logits, validate_args=False).entropy()
    return logprobs, entropy
