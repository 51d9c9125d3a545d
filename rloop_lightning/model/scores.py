"""Hidden states of the tokens that predict a completion token, computed in two ways.

    packed_states(model, packed)        for rollouts packed into one row
    padded_states(model, batch)         for padded rollouts, if the model can't take packed rows

Both return [N, H], with gradients, in the order of the batch's completion tokens, row by row.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rloop_lightning.model.packed_attention import packed_mask
from rloop_lightning.model.packing import PackedBatch
from rloop_lightning.types import RolloutBatch


def packed_states(model: Any, packed: PackedBatch) -> Tensor:
    """Hidden states of packed rollouts; the model must have passed `packed_attention.install`."""
    hidden = model.get_decoder()(
        input_ids=packed.input_ids[None],
        position_ids=packed.positions[None],
        attention_mask=packed_mask(packed),
        use_cache=False,
    ).last_hidden_state  # [1, tokens, H]
    return hidden[0][packed.predicting]


def padded_states(model: Any, batch: RolloutBatch) -> Tensor:
    """Hidden states of padded rollouts, for any causal LM. The padding is on the right, where no token sees it."""
    hidden = model.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # [B, L, H]
    rows, columns = batch.completion_mask.nonzero(as_tuple=True)
    return hidden[rows, batch.prompt_lengths[rows] + columns - 1]


def completion_tokens(batch: RolloutBatch) -> Tensor:
    """The ids of the completion tokens, [N]."""
    rows, columns = batch.completion_mask.nonzero(as_tuple=True)
    return batch.input_ids[rows, batch.prompt_lengths[rows] + columns]
