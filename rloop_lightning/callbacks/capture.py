"""Rollout capture: writes every rollout of an exploration to the pool, before the update that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import numpy as np

from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost
from rloop_lightning.seeds import derive_seed
from rloop_lightning.system.fields import NonNegativeInt, PositiveInt, check_fields
from rloop_lightning.types import Problem, RolloutStep


@dataclass(frozen=True)
class CaptureConfig:
    """Extra rollouts for the pool, in addition to those of every rollout step.

    Args:
        every_n_steps: rollout steps between extra captures with the current policy; 0 is off.
        extra_rollouts: rollouts per problem in an extra capture.
        extra_problems: training problems in an extra capture, chosen at random; 0 is all.
    """

    every_n_steps: NonNegativeInt = 0
    extra_rollouts: PositiveInt = 8
    extra_problems: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_fields(self, "--capture")


class RolloutCapture(L.Callback):
    """Writes one shard per rollout step, `step-000012`, and one per extra capture, `extra-000050`."""

    def __init__(
        self,
        pool: RolloutPool,
        config: CaptureConfig,
        sampler: GroupSampler,
        problems: Sequence[Problem],
        *,
        round: int,
        run_id: str,
        seed: int,
    ) -> None:
        self.pool = pool
        self.config = config
        self.sampler = sampler
        self.problems = problems
        self.round = round
        self.run_id = run_id
        self.seed = seed

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: RolloutStep, batch_idx: int) -> None:
        self._write(f"step-{batch.index + 1:06d}", batch.groups, batch.index)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: RolloutStep, batch_idx: int
    ) -> None:
        step = batch.index + 1
        if self.config.every_n_steps == 0 or step % self.config.every_n_steps:
            return
        rng = np.random.default_rng(derive_seed(self.seed, "extra problems", step))
        count = min(self.config.extra_problems or len(self.problems), len(self.problems))
        chosen = [self.problems[i] for i in rng.permutation(len(self.problems))[:count]]
        sampling = replace(
            self.sampler.engine.sampling(derive_seed(self.seed, "extra", step)), report_routed_experts=False
        )
        cost = SamplingCost()
        groups = self.sampler.sample(chosen, self.config.extra_rollouts, sampling, cost)
        self._write(f"extra-{step:06d}", groups, batch.index)
        pl_module.record(
            {"capture/extra_rollouts": float(cost.rollouts), "time/capture_s": cost.generate_s + cost.reward_s}
        )

    def _write(self, name: str, groups: Sequence[Any], step_index: int) -> None:
        self.pool.write(name, groups, round=self.round, rollout_step=step_index, run_id=self.run_id)
