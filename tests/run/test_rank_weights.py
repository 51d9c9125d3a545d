"""What rank 0 changes outside of a phase reaches the other ranks, which generate with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_policy

from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.weights import Weights
from rloop_lightning.system.ranks import Ranks


class NotedRanks(Ranks):
    """Rank 0 of two; notes what it would give the other one."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.given: list[torch.Tensor] = []

    def send(self, message: Any) -> None:
        self.given.clear()

    def broadcast_tensors(self, tensors: Sequence[torch.Tensor]) -> None:
        self.given += [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("change", ["use", "move_towards"])
def test_the_other_ranks_get_the_weights(change: str, tmp_path: Path) -> None:
    base, other = tmp_path / "base", tmp_path / "other"
    policy = make_policy(dtype=torch.float32)
    policy.save(base)
    policy.source = str(base)
    moved = make_policy(dtype=torch.float32)
    with torch.no_grad():
        for weight in moved.parameters():
            weight.add_(0.5)
    moved.save(other)
    ranks = NotedRanks()
    weights = Weights(policy, RunFolder(tmp_path / "run"), ranks=ranks)
    weights.use(other) if change == "use" else weights.move_towards(other, 0.5)
    own = list(policy.model.parameters())
    assert len(ranks.given) == len(own)
    assert all(torch.equal(given, weight) for given, weight in zip(ranks.given, own, strict=True))
