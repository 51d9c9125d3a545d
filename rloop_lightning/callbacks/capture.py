"""Rollout capture: writes every rollout of an exploration to the pool, before the update that uses it.

It also counts what the hard-problem filter can select from the pool so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from rloop_lightning.rollouts.filter import FilterConfig
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.pool_scan import count_rollouts
from rloop_lightning.rollouts.reach import Tally
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost
from rloop_lightning.seeds import derive_seed
from rloop_lightning.system.fields import NonNegativeInt, PositiveInt, check_fields
from rloop_lightning.types import Group, Problem, RolloutStep


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
    """Writes one shard per rollout step, `step-000012`, and one per extra capture, `extra-000050`.

    Records `pool/problems_solved`, `pool/problems_within_reach` and `pool/hard_problems` (reach.py), and warns half-way
    through an exploration if no problem is hard.

    Args:
        pool: the pool of the round.
        config: the extra captures.
        sampler: generates the extra rollouts.
        problems: the training set.
        filter: the hard-problem filter that will read the pool; None without one.
        earlier: the pools of earlier rounds, whose rollouts count for `filter.rate_over` run.
        round: round of the run, from 0.
        run_id: id of the run.
        seed: seed of the extra captures.
    """

    def __init__(
        self,
        pool: RolloutPool,
        config: CaptureConfig,
        sampler: GroupSampler,
        problems: Sequence[Problem],
        filter: FilterConfig | None,
        earlier: Sequence[RolloutPool] = (),
        *,
        round: int,
        run_id: str,
        seed: int,
    ) -> None:
        self.pool = pool
        self.config = config
        self.sampler = sampler
        self.problems = problems
        self.filter = filter
        self.earlier = earlier if filter is not None and filter.rate_over == "run" else ()
        self._tally: Tally | None = None
        self._warned = False
        self.round = round
        self.run_id = run_id
        self.seed = seed

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.filter is not None:
            counts, earlier = count_rollouts(self.pool), count_rollouts(*self.earlier)
            self._tally = Tally(self.filter.max_success_rate, counts, earlier)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: RolloutStep, batch_idx: int) -> None:
        self._write(f"step-{batch.index + 1:06d}", batch.groups, batch.index)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: RolloutStep, batch_idx: int
    ) -> None:
        step = batch.index + 1
        if self.config.every_n_steps and step % self.config.every_n_steps == 0:
            self._capture_extra(pl_module, step)
        if self._tally is not None:
            pl_module.record(self._tally.metrics())
            steps = batch.phase_steps or trainer.num_training_batches
            if 0 < steps // 2 <= step < steps and not self._tally.hard and not self._warned:
                self._warned = True
                self._warn_that_none_is_hard(self._tally, steps)

    def _capture_extra(self, pl_module: Any, step: int) -> None:
        rng = np.random.default_rng(derive_seed(self.seed, "extra problems", step))
        count = min(self.config.extra_problems or len(self.problems), len(self.problems))
        chosen = [self.problems[i] for i in rng.permutation(len(self.problems))[:count]]
        sampling = replace(
            self.sampler.engine.sampling(derive_seed(self.seed, "extra", step)), report_routed_experts=False
        )
        cost = SamplingCost()
        groups = self.sampler.sample(chosen, self.config.extra_rollouts, sampling, cost)
        self._write(f"extra-{step:06d}", groups, step - 1, step)
        pl_module.record(
            {"capture/extra_rollouts": float(cost.rollouts), "time/capture_s": cost.generate_s + cost.reward_s}
        )

    def _warn_that_none_is_hard(self, tally: Tally, steps: int) -> None:
        rank_zero_warn(
            f"half of the exploration's {steps:,} rollout steps are done and no problem is hard yet: {tally.solved:,} "
            f"problems were solved, {tally.within_reach:,} have enough rollouts for a success rate below "
            f"--filter.max_success_rate {tally.max_success_rate:g}. If none becomes hard, the expert set is "
            "empty. A resume may change --filter.max_success_rate, --filter.rate_over and --loop.rollouts_per_problem"
        )

    def _write(self, name: str, groups: Sequence[Group], step_index: int, version: int | None = None) -> None:
        self.pool.write(
            name, groups, round=self.round, rollout_step=step_index, policy_version=version, run_id=self.run_id
        )
        if self._tally is not None:
            self._tally.add(groups)
