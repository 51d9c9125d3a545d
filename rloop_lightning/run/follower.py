"""A rank other than the leader: it generates its share of each request, and computes its share of each update.

It follows the leader's messages (`leader.py` has the other side), decides nothing, and reads and writes no file of the
run. In a phase it runs a `Trainer.fit` of its own, since Lightning's strategies work in all processes alike.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.distil import Distil
from rloop_lightning.algorithms.fsdp2 import FSDP2Strategy
from rloop_lightning.algorithms.policy_module import PolicyModule
from rloop_lightning.callbacks.gradient_norm import GradientNormMonitor
from rloop_lightning.errors import NonFiniteError
from rloop_lightning.model.on_ranks import OnPolicy
from rloop_lightning.model.policy import Policy
from rloop_lightning.rollouts.shared_sampler import RankSampler
from rloop_lightning.run.leader import (
    BeginPhase,
    EndBatch,
    EndPhase,
    EndRun,
    LearnFrom,
    SaveCheckpoint,
    SeedAll,
    Step,
    UseWeights,
    shares_generation,
)
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.trainer import MakeTrainer, new_trainer
from rloop_lightning.system.ranks import Ranks
from rloop_lightning.system.signals import ignore_signals
from rloop_lightning.types import Rollout, RolloutBatch, RolloutStep


class Follower:
    """Follows the leader from the beginning of a run to its end.

    Args:
        ranks: the ranks of the job.
        parts: the parts of the run. Its problems are the leader's business.
        policy: the base policy.
        make_trainer: makes a new Trainer for a phase.
    """

    def __init__(self, ranks: Ranks, parts: Parts, policy: Policy, make_trainer: MakeTrainer) -> None:
        self.ranks = ranks
        self.parts = parts
        self.policy = policy
        self.make_trainer = make_trainer
        self._distillation: Distil | None = None  # of the phase that comes
        self.sampler = RankSampler(parts.engine, parts.reward, generates=shares_generation(parts))
        self.trainer = new_trainer(make_trainer, ranks, logger=False)
        policy.mixed_precision = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
        policy.to(self.trainer.strategy.root_device)
        if isinstance(strategy := self.trainer.strategy, FSDP2Strategy):
            strategy.shard(policy)
        self.sampler.bind(policy)

    def run(self) -> EndRun:
        """Follow until the run ends. Returns how it ended."""
        try:
            while not isinstance(message := self.serve(), EndRun):
                if isinstance(message, BeginPhase):
                    self._fit(message)
            return message
        finally:
            self.sampler.engine.close()

    def serve(self) -> Any:
        """Serve messages until one of another kind comes: of a phase, or the end. Returns that."""
        while True:
            message = self.ranks.receive()
            match message:
                case UseWeights():
                    self.policy.to(self.trainer.strategy.root_device)
                    message.spread(self.policy, self.ranks)
                case OnPolicy():
                    # What is not finite is so on all ranks, and rank 0 says where it came from.
                    with self.trainer.precision_plugin.forward_context(), suppress(NonFiniteError):
                        message.call(self.policy)
                case LearnFrom():
                    self._learn()
                case SeedAll(seed):
                    L.seed_everything(seed, verbose=False)
                case SaveCheckpoint(path):
                    self.trainer.save_checkpoint(path)
                case BeginPhase() | Step() | EndBatch() | EndPhase() | EndRun():
                    return message
                case _:
                    message.serve(self.sampler, self.ranks)

    def _fit(self, phase: BeginPhase) -> None:
        module = self._module(phase)
        if isinstance(module, Algorithm):
            module.expect_lag(phase.staleness)
        self.trainer = new_trainer(
            self.make_trainer,
            self.ranks,
            logger=False,
            enable_progress_bar=False,
            callbacks=[GradientNormMonitor(self.parts.gradient, _NoFaults()), _Following(self)],
        )
        stream = _FollowedStream(self, phase.steps)
        self.trainer.fit(module, stream, ckpt_path=phase.checkpoint, weights_only=True)

    def _module(self, phase: BeginPhase) -> PolicyModule:
        if self._distillation is not None:
            distillation, self._distillation = self._distillation, None
            return distillation
        given = self.parts.algorithm if phase.explores else self.parts.consolidation
        assert isinstance(given, PolicyModule)
        module = copy.deepcopy(given)
        module.policy = self.policy
        return module

    def _learn(self) -> None:
        """Take the policy's weights as the teacher's of the distillation that comes."""
        assert isinstance(self.parts.consolidation, Distil)
        self._distillation = copy.deepcopy(self.parts.consolidation)
        self._distillation.policy = self.policy
        self._distillation.learn_from(self.policy)


class _FollowedStream:
    """The mini-batches that the leader sends.

    Args:
        steps: the length of the leader's stream, on which learning rates depend.
    """

    def __init__(self, follower: Follower, steps: int) -> None:
        self._follower = follower
        self._steps = steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[RolloutStep | RolloutBatch]:
        while isinstance(step := self._follower.serve(), Step):
            yield step.batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the leader's stream knows where it is. Lightning wants equal loaders in all processes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


class _NoFaults:
    """Takes part in finding the faulty rollouts of a skipped update, which rank 0 saves."""

    def save(
        self, module: PolicyModule, batch: RolloutBatch, rollouts: Sequence[Rollout], *, step: int, update: int
    ) -> tuple[str, int]:
        module.row_losses(batch)
        return "", 0


class _Following(Checkpoint):
    """Serves what the leader's callbacks ask for after a batch. Lightning calls checkpoint callbacks last."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        ignore_signals()  # Lightning has put its own handlers in place

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        end = self._follower.serve()
        assert isinstance(end, EndBatch)
        trainer.should_stop = end.stops  # callbacks of this rank do not see all metrics
        pl_module.step_metrics.clear()  # on rank 0, the callback that writes them does so
