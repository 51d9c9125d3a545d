"""Check, once and on a small batch, that a model computes the same for packed rows as for padded rows.

A model fails if it mixes neighbouring tokens outside attention (linear attention, convolutions), or if its attention
bypasses transformers' interface.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rloop_lightning.batching import collate
from rloop_lightning.model.context import context_of
from rloop_lightning.model.head import Head
from rloop_lightning.model.libraries import quiet
from rloop_lightning.model.packed_attention import install
from rloop_lightning.model.packing import PackedBatch, pack
from rloop_lightning.model.quantization import computing_in, count
from rloop_lightning.model.scores import completion_tokens, packed_states, padded_states
from rloop_lightning.types import Rollout, RolloutBatch

_log = logging.getLogger(__name__)

# Lengths in tokens: two prompts with three completions each. All differ, and are short enough to be cheap.
_PROMPTS, _COMPLETIONS = (7, 12), (3, 9, 17)
# Larger models are compared in their own dtype: a float32 copy would double their memory.
_FLOAT32_WEIGHTS = 2**31
# Rounding makes differences as large in half precision, so that the comparison finds only gross errors there.
_ROUNDING_IN_HALF_PRECISION = 0.2


def takes_packed_rows(model: Any, head: Head) -> bool:
    """Whether packed rollouts get the same logprobs and gradients as padded ones.

    If so, the model accepts packed rows from now on. Otherwise the model stays unchanged, and the log gives the reason.
    """
    before = model.config._attn_implementation
    with quiet():  # hides messages about unsupported implementations
        why = _difference(model, head)
        if why:
            model.set_attn_implementation(before)
    if why:
        _log.info(f"{type(model).__name__} computes padded rollouts: {why}")
    return not why


def _difference(model: Any, head: Head) -> str:
    """Why a model can't compute packed rows; empty if it can."""
    if context_of(model.config.get_text_config()).counts_columns:
        return "its sparse attention depends on the length of a row"
    batch = small_batch(model)
    packed = pack(batch)
    with _in_float32(model) as tolerance:
        logprobs, slopes = _logprobs_and_slopes(model, head, batch, lambda: padded_states(model, batch))
        if not install(model):
            return "it does not go through transformers' attention interface"
        try:
            ours, our_slopes = _logprobs_and_slopes(model, head, batch, lambda: packed_states(model, packed))
        except Exception as error:  # the model's code may raise anything when it gets an unknown kind of mask
            return f"it can't compute a packed row ({type(error).__name__})"
    off = float((ours - logprobs).abs().max())
    slopes = _of_packed_tokens(packed, batch, slopes)
    slopes_off = float((our_slopes[0, : packed.tokens] - slopes).norm() / slopes.norm())
    if off <= tolerance and slopes_off <= 10 * tolerance:
        return ""
    return f"packed ones differ by {off:.2g} nats, their gradients by {slopes_off:.1%}"


def small_batch(model: Any) -> RolloutBatch:
    """Rollouts of random tokens, on the model's device."""
    rng = np.random.default_rng(0)
    vocabulary = model.config.get_text_config().vocab_size
    prompts = [rng.integers(0, vocabulary, length) for length in _PROMPTS]
    rollouts = [
        Rollout(
            problem_id="",
            prompt_ids=prompt,
            completion_ids=rng.integers(0, vocabulary, length),
            sampling_logprobs=np.zeros(length, dtype=np.float32),
            text="",
            finish_reason="stop",
        )
        for prompt in prompts
        for length in _COMPLETIONS
    ]
    return collate(rollouts, np.zeros(len(rollouts))).to(next(model.parameters()).device)


@contextmanager
def _in_float32(model: Any) -> Iterator[float]:
    """Cast the weights to float32 in the block, unless there are too many. Yields the rounding tolerance, nats."""
    weights = [weight for weight in model.parameters() if weight.dtype in (torch.bfloat16, torch.float16)]
    if sum(map(count, model.parameters())) > _FLOAT32_WEIGHTS:
        yield 1e-3 if not weights else _ROUNDING_IN_HALF_PRECISION
        return
    dtypes = [weight.dtype for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.float()
        with computing_in(model, torch.float32):
            yield 1e-3
    finally:
        for weight, dtype in zip(weights, dtypes, strict=True):
            weight.data = weight.data.to(dtype)  # lossless: the values came from this dtype


def _logprobs_and_slopes(
    model: Any, head: Head, batch: RolloutBatch, states: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """The logprobs of the completion tokens, and the gradient of their sum with respect to the embedding's output."""
    embedded: list[Tensor] = []

    def watch(module: Any, args: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    hook = model.get_input_embeddings().register_forward_hook(watch)
    try:
        with torch.enable_grad():
            hidden = states()
            logprobs, _ = head.scores(model, hidden, completion_tokens(batch), 1.0, hidden.dtype)
            (slopes,) = torch.autograd.grad(logprobs.sum(), embedded)
    finally:
        hook.remove()
    return logprobs.detach(), slopes


def _of_packed_tokens(packed: PackedBatch, batch: RolloutBatch, slopes: Tensor) -> Tensor:
    """Map gradients of padded rows [B, L, H] to packed tokens [N, H]; sum a prompt's gradients over its rows."""
    columns = slopes.shape[1]
    real = torch.arange(columns, device=slopes.device) < batch.lengths[:, None]
    places = packed.places(columns)[real]
    return slopes.new_zeros(packed.tokens, slopes.shape[2]).index_add(0, places, slopes[real])
