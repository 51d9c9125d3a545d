"""How many of a policy's weights training changes: a sample of them, to compare later.

before = weight_sample(policy)
...
share_changed(before, weight_sample(policy))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rloop_lightning.model.sharding import local

_WEIGHTS = 2**20  # in a sample; a smaller policy is compared as a whole


@torch.no_grad()
def weight_sample(module: nn.Module) -> list[Tensor]:
    """Copies of about a million trainable weights, evenly spaced in each parameter, on the CPU.

    Of a sharded policy, they are of this rank's shards.
    """
    parameters = [local(parameter.detach()) for parameter in module.parameters() if parameter.requires_grad]
    stride = -(-sum(parameter.numel() for parameter in parameters) // _WEIGHTS)
    return [parameter.flatten()[::stride].cpu().clone() for parameter in parameters]


def share_changed(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The share of weights that differ between two samples of the same policy."""
    changed = sum(int((old != new).sum()) for old, new in zip(before, after, strict=True))
    return changed / max(sum(map(len, before)), 1)
