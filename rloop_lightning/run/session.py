"""What the stages of a run share while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from rloop_lightning.callbacks.progress import PhaseProgress
from rloop_lightning.model.policy import Policy
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.sampler import GroupSampler
from rloop_lightning.run.diagnosis import PhaseWatch
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.progress import phase_progress
from rloop_lightning.run.state import LoopState, Stage
from rloop_lightning.run.trainer import PhaseTrainer
from rloop_lightning.run.weights import Weights
from rloop_lightning.system.signals import StopSignals


@dataclass(frozen=True)
class Session:
    """The objects of a running run.

    Args:
        folder: the run folder.
        parts: the parts of the run, with rendered prompts.
        policy: the one model, whose weights the stages load, train and save.
        weights: loads and saves them.
        sampler: generates and scores groups with them.
        phases: trains them.
        signals: the signals that stop the run.
    """

    folder: RunFolder
    parts: Parts
    policy: Policy
    weights: Weights
    sampler: GroupSampler
    phases: PhaseTrainer
    signals: StopSignals

    def title(self, stage: Stage) -> str:
        """The stage's name for progress bars and notes: "round 1/3 explore"."""
        rounds = self.parts.loop.rounds if self.parts.consolidation else 1
        return f"round {stage.round + 1}/{rounds} {stage.phase}"

    def progress(self, stage: Stage, state: LoopState) -> PhaseProgress:
        """The phase's progress bar."""
        return phase_progress(self.title(stage), stage, state, self.folder, self.parts)

    def watch(self, stage: Stage) -> PhaseWatch:
        """Watches whether the phase trains the policy. Call it before the phase's first step."""
        return PhaseWatch(self.folder, stage, self.parts, self.policy, self.title(stage))

    def earlier_pools(self, stage: Stage) -> list[RolloutPool]:
        """The pools of the rounds before the stage's."""
        return [RolloutPool(path) for path in self.folder.pools(stage)[:-1]]
