"""The training data of a consolidation, as a loader that Lightning can checkpoint at any batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rloop_lightning.batching import collate
from rloop_lightning.seeds import derive_seed
from rloop_lightning.types import Rollout, RolloutBatch


class ExpertStream:
    """Mini-batches of the expert set for `epochs` passes, each in a new seeded order.

    Args:
        rollouts: the expert set.
        weights: the weight of each rollout in the loss.
        rollouts_per_update: rollouts in a mini-batch; the last one of a pass may have fewer.
    """

    def __init__(
        self,
        rollouts: Sequence[Rollout],
        weights: Sequence[float],
        *,
        rollouts_per_update: int,
        epochs: int,
        seed: int,
    ) -> None:
        self.rollouts = rollouts
        self.weights = np.asarray(weights, dtype=np.float32)
        self.rollouts_per_update = rollouts_per_update
        self.epochs = epochs
        self.seed = seed
        self.position = 0  # mini-batches yielded so far

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(len(self.rollouts) / self.rollouts_per_update)

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch

    def __iter__(self) -> Iterator[RolloutBatch]:
        while self.position < len(self):
            epoch, place = divmod(self.position, self.batches_per_epoch)
            order = np.random.default_rng(derive_seed(self.seed, "expert", epoch)).permutation(len(self.rollouts))
            rows = order[place * self.rollouts_per_update : (place + 1) * self.rollouts_per_update]
            self.position += 1
            yield replace(collate([self.rollouts[i] for i in rows], self.weights[rows]), rows=torch.from_numpy(rows))

    def state_dict(self) -> dict[str, Any]:
        """The stream's position, which Lightning saves in checkpoints."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
