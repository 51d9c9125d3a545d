"""What the rollouts of each step are like: length, entropy, diversity, and which problems are solved now and ever."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import lightning as L
import numpy as np

from rloop_lightning.evaluation.outcomes import RolloutOutcomes
from rloop_lightning.evaluation.solved import mean_distinct_solutions
from rloop_lightning.evaluation.visits import Visits
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.types import Group, RolloutStep


class RolloutMetrics(L.Callback):
    """Records metrics of all rollouts of a step, including those of groups that were not kept.

    A metric without data is left out: without a right rollout, its length; without an earlier visit of a problem, the
    similarity between steps. Its own time is `time/metrics_s`.

    Args:
        pool: the pool of the round, which tells a resumed exploration about its earlier steps.
        seed: seed of the compared pairs.
    """

    def __init__(self, pool: RolloutPool, seed: int) -> None:
        self.pool = pool
        self.seed = seed
        self._visits = Visits(seed)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._visits = Visits(self.seed)
        self._visits.load(self.pool)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: RolloutStep, batch_idx: int
    ) -> None:
        started = perf_counter()
        metrics = {**_outcomes(batch.groups), **self._compared(batch)}
        new = {name: value for name, value in metrics.items() if math.isfinite(value) and name not in batch.metrics}
        pl_module.record({**new, "time/metrics_s": perf_counter() - started})

    def _compared(self, batch: RolloutStep) -> dict[str, float]:
        """The step's rollouts compared with each other and with the problems' earlier ones."""
        rollouts = [rollout for group in batch.groups for rollout in group.rollouts]
        ids = [rollout.problem_id for rollout in rollouts]
        completions = [rollout.completion_ids for rollout in rollouts]
        right = np.array([rollout.success for rollout in rollouts], dtype=bool)
        similarity = self._visits.similarity(batch.index, ids, completions)
        self._visits.add(batch.index, ids, completions, right.tolist())
        covered = self._visits.coverage()
        return {
            "rollout/similarity_intra_step": similarity.intra_step,
            "rollout/similarity_inter_step": similarity.inter_step,
            "rollout/distinct_solutions": mean_distinct_solutions(ids, [rollout.text for rollout in rollouts], right),
            "pool/coverage_now": covered.now,
            "pool/coverage_ever": covered.ever,
            "pool/coverage_lost": covered.lost,
        }


def _outcomes(groups: Sequence[Group]) -> dict[str, float]:
    outcomes = RolloutOutcomes(sync_on_compute=False)
    outcomes.update(groups)
    return {f"rollout/{name}": float(value) for name, value in outcomes.compute().items()}
