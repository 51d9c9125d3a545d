"""Logprobs and entropies of the completion tokens of a micro-batch, in two ways.

    packed_scores(llama, batch, dtype)      a Llama-like model's, by llama.py over packed rollouts
    padded_scores(model, batch)             any model's, by its own forward over padded rollouts

Both give logprobs and entropies, float32 [N], nats, row by row, at the batch's temperature. Logprobs have gradients,
entropies only if `entropy_gradient`. No tensor of batch x tokens x vocabulary exists in either.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rloop_lightning.model.llama import Llama
from rloop_lightning.model.packing import PackedAttention, pack
from rloop_lightning.model.token_scores import token_scores
from rloop_lightning.types import RolloutBatch

# What a model's own head gives at once: 64 MiB in float32, whatever the vocabulary.
_LOGITS_PER_CHUNK = 2**24


def packed_scores(
    llama: Llama, batch: RolloutBatch, dtype: torch.dtype, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies [N] of a Llama-like model, whose products are computed in `dtype`."""
    weights = llama.weights(dtype)
    packed = pack(batch).padded()
    attend = PackedAttention(packed, llama.heads, llama.kv_heads, llama.scale, dtype)
    # What is cast, and when, is the forward's own affair.
    with torch.autocast(batch.input_ids.device.type, enabled=False):
        hidden = llama(weights, packed.input_ids, packed.positions, attend)
        return token_scores(
            hidden[packed.predicting],
            weights.head,
            packed.targets,
            batch.temperature or 1.0,
            entropy_gradient=entropy_gradient,
        )


def padded_scores(model: Any, batch: RolloutBatch, *, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies [N] of any Hugging Face causal LM.

    Logits are computed in chunks of rows, which the backward pass computes anew.
    """
    hidden = model.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # [B, L, H]
    rows, columns = batch.completion_mask.nonzero(as_tuple=True)
    predicting = batch.prompt_lengths[rows] + columns - 1
    hidden = hidden[rows, predicting]  # [N, H]
    targets = batch.input_ids[rows, predicting + 1]  # [N]
    chunk = max(1, _LOGITS_PER_CHUNK // model.config.get_text_config().vocab_size)  # rows
    score = partial(_score, model, temperature=batch.temperature or 1.0, entropy_gradient=entropy_gradient)
    pieces = [
        checkpoint(score, h, t, use_reentrant=False, preserve_rng_state=False)
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    logprobs, entropy = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return logprobs, entropy


@torch.no_grad()
def check_head(model: Any) -> None:
    """Make sure that `padded_scores` sees the same logits as the model's own forward, whatever the architecture.

    Raises:
        ValueError: it does not.
    """
    ids = torch.arange(4, device=next(model.parameters()).device)[None]
    expected = model(input_ids=ids, use_cache=False).logits.float()
    logits = _logits(model, model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(logits, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
        raise ValueError(
            f"{type(model).__name__} changes its logits behind the output embedding in a way "
            "that is not known here; its logprobs would be wrong"
        )


def _score(
    model: Any, hidden: Tensor, targets: Tensor, *, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Logprobs of the targets and entropies, both [N], from hidden states [N, H]."""
    logits = _logits(model, hidden) / temperature  # [N, V]
    logprobs = -nn.functional.cross_entropy(logits, targets, reduction="none")
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = torch.distributions.Categorical(logits=logits, validate_args=False).entropy()
    return logprobs, entropy


def _logits(model: Any, hidden: Tensor) -> Tensor:
    """The model's head, float32 [..., V], with what some architectures do to logits behind it."""
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden).float()
    logits = logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
