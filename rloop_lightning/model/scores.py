"""Hidden states of the tokens that predict a completion token, in two ways.

    packed_states(model, packed)        of rollouts packed into one row, through the model's own modules
    padded_states(model, batch)         of padded rollouts, for a model that can't take the other way

Both give [N, H], with gradients, in the order of the batch's completion tokens, row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from rloop_lightning.model.packed_attention import packed_mask
from rloop_lightning.model.packing import PackedBatch
from rloop_lightning.types import RolloutBatch


def packed_states(model: Any, packed: PackedBatch) -> Tensor:
    """Of a model that `packed_attention.install` changed."""
    hidden = model.get_decoder()(
        input_ids=packed.input_ids[None],
        position_ids=packed.positions[None],
        attention_mask=packed_mask(packed),
        use_cache=False,
    ).last_hidden_state  # [1, tokens, H]
    return hidden[0][packed.predicting]


def padded_states(model: Any, batch: RolloutBatch) -> Tensor:
    """Of any causal LM; padding stands behind a rollout, where no token sees it."""
    hidden = model.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # [B, L, H]
    rows, columns = batch.completion_mask.nonzero(as_tuple=True)
    return hidden[rows, batch.prompt_lengths[rows] + columns - 1]


@contextmanager
def recomputing(model: Any) -> Iterator[None]:
    """Within it, layers keep only their inputs for the backward pass, which computes them anew.

    Hugging Face's own switch works in training mode alone, where layers drop units out as well.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        # Inside of the call, so that a module's hooks run once.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def completion_tokens(batch: RolloutBatch) -> Tensor:
    """The completion tokens themselves, [N]."""
    rows, columns = batch.completion_mask.nonzero(as_tuple=True)
    return batch.input_ids[rows, batch.prompt_lengths[rows] + columns]
