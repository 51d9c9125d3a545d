"""What rank 0 tells the other ranks of a run. They serve it in follower.py.

- `UseWeights`: take over the weights that rank 0 has loaded.
- `LearnFrom`: the teacher of a distillation.
- `BeginPhase`, `EndPhase`: a `Trainer.fit`.
- `Step`, `EndBatch`: a batch of rank 0's stream; all callbacks of rank 0 are done with it.
- `SaveCheckpoint`: take part in saving a checkpoint.
- `Sync`, `Generate`: sampling (shared_sampler.py).
- `EndRun`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from rloop_lightning.model.policy import Policy
from rloop_lightning.rollouts.sampler import GroupSampler
from rloop_lightning.rollouts.shared_sampler import SharedSampler
from rloop_lightning.run.parts import Parts
from rloop_lightning.system.ranks import ALONE, Ranks
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.types import RolloutBatch, RolloutStep


@dataclass(frozen=True)
class UseWeights:
    """The policy's weights have changed outside of a phase."""

    def spread(self, policy: Policy, ranks: Ranks) -> None:
        """Give rank 0's weights to all ranks. All of them call it."""
        trained = [weight for weight in policy.model.parameters() if weight.is_floating_point()]
        if policy.adapter is not None:
            trained = [weight for weight in trained if weight.requires_grad]
        with torch.no_grad():
            ranks.broadcast_tensors([weight.data for weight in trained])


@dataclass(frozen=True)
class SeedAll:
    """Seed the global random state, which only code of the user reads."""

    seed: int


@dataclass(frozen=True)
class LearnFrom:
    """The consolidation of the phase that comes learns from the weights that the policy has now."""


@dataclass(frozen=True)
class BeginPhase:
    """A phase begins.

    Args:
        explores: whether it trains the algorithm; else the consolidation.
        steps: length of the stream.
        staleness: rollout steps by which rollouts may be older than the policy.
        checkpoint: the checkpoint that rank 0 continues from.
    """

    explores: bool
    steps: int
    staleness: int
    checkpoint: str | None


@dataclass(frozen=True)
class Step:
    """The next batch of the phase."""

    batch: RolloutStep | RolloutBatch


@dataclass(frozen=True)
class EndBatch:
    """Rank 0's callbacks are done with the batch.

    Args:
        stops: whether one of them has ended the phase.
    """

    stops: bool


@dataclass(frozen=True)
class EndPhase:
    """The phase has no further batch."""


@dataclass(frozen=True)
class SaveCheckpoint:
    """Take part in saving a checkpoint, which rank 0 writes."""

    path: str


@dataclass(frozen=True)
class EndRun:
    """The run is over.

    Args:
        code: the exit code.
    """

    code: int


def sampler_of(parts: Parts, ranks: Ranks) -> GroupSampler:
    """The leader's sampler, which shares its work with the other ranks."""
    if not ranks.several:
        return GroupSampler(parts.engine, parts.reward)
    shares = shares_generation(parts)
    parts.engine.ranks = ALONE if shares else ranks
    return SharedSampler(parts.engine, parts.reward, ranks, shares=shares)


def shares_generation(parts: Parts) -> bool:
    """Whether every rank generates. Not if one engine serves all, or if it generates beside the updates."""
    beside = parts.loop.staleness > 0 and parts.engine.works_beside_updates
    return parts.engine.one_per_rank and not beside


class LedStream:
    """A stream whose batches go to all ranks.

    Args:
        stream: the leader's stream.
    """

    def __init__(self, stream: Any, ranks: Ranks) -> None:
        self._stream = stream
        self._ranks = ranks

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[RolloutStep | RolloutBatch]:
        for batch in self._stream:
            self._ranks.send(Step(_for_update(batch)))
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(state)


class Leading(Checkpoint):
    """Tells the other ranks when a batch and the phase are over. Lightning calls checkpoint callbacks last."""

    def __init__(self, ranks: Ranks, signals: StopSignals) -> None:
        self._ranks = ranks
        self._signals = signals

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Lightning's handler of SIGTERM would begin a collective in the middle of another one.
        self._signals.handle()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._ranks.send(EndBatch(trainer.should_stop))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._ranks.send(EndPhase())


class LeadersCheckpoints(TorchCheckpointIO):
    """Checkpoints that rank 0 writes and reads. It gives the others their content."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not self._ranks.leads:
            return self._ranks.receive()
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        self._ranks.send(checkpoint)
        return checkpoint


def _for_update(batch: RolloutStep | RolloutBatch) -> RolloutStep | RolloutBatch:
    """What an update needs of a batch."""
    if isinstance(batch, RolloutBatch):
        return batch
    return replace(batch, groups=(), rollouts=(), metrics={})
