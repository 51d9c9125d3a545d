"""How token losses become the loss of a mini-batch.

    token-mean      mean over all tokens of the mini-batch (DAPO)
    sequence-mean   mean over a rollout's tokens, then over rollouts (GRPO, GSPO)
    sequence-sum    sum over a rollout's tokens, then mean over rollouts (MiniRL)
    constant        sum over all tokens / (rollouts x length limit) (Dr. GRPO)

Rollouts without loss tokens are not counted. The loss is a sum over rows, weighted by `row_weights` and divided by
`loss_count`. That count is known before the first micro-batch, so the gradient does not depend on micro-batch size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token-mean", "sequence-mean", "sequence-sum", "constant"]


def row_weights(mask: Tensor, aggregation: Aggregation) -> Tensor:
    """The weight of each row's token losses in the sum over the mini-batch, float32 [B].

    Args: mask [B, T] bool, the loss tokens.
    """
    if aggregation == "sequence-mean":
        return 1.0 / mask.sum(1).clamp(min=1).float()
    return torch.ones(len(mask), device=mask.device)


def loss_count(mask: Tensor, aggregation: Aggregation, max_new_tokens: int) -> Tensor:
    """The divisor of the summed loss of a mini-batch, a scalar.

    Args: mask [B, T] bool, the loss tokens; max_new_tokens, the completion length limit.

    Raises:
        ValueError: the aggregation is `constant` and the rollouts have no length limit.
    """
    if aggregation == "constant" and max_new_tokens < 1:
        raise ValueError(
            "the aggregation 'constant' needs the rollouts' length limit, which an expert set does not have"
        )
    if aggregation == "token-mean":
        return mask.sum()
    rows = mask.any(1).sum()
    return rows * max_new_tokens if aggregation == "constant" else rows
