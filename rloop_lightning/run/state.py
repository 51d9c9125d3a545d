"""What a run is to do and where it stands: `LoopConfig`, the plan of its stages, and `LoopState` in state.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rloop_lightning.errors import DamagedError
from rloop_lightning.system.fields import NonNegativeInt, PositiveInt, check_fields
from rloop_lightning.system.files import write_text

Phase = Literal["explore", "consolidate", "evaluate"]
Which = Literal["base", "explored", "consolidated"]
Select = Literal["last", "explored", "pass@1", "pass@k"]

_CHECKSUM = "sha256"
"""The key in a state's file that holds the checksum of all the others."""


@dataclass(frozen=True)
class LoopConfig:
    """The outer loop: how many rounds, how long each explores, what a rollout step generates.

    Three rounds of 200 rollout steps are the paper's (arXiv 2511.04285); the other defaults are ours.

    Args:
        rounds: rounds of exploration and consolidation. Without a consolidation the same number of rollout steps is
            one uninterrupted exploration.
        explore_steps: rollout steps in a round's exploration.
        problems_per_step: groups that a rollout step trains on.
        rollouts_per_problem: rollouts in a group.
        select: which policy the run hands over: `last`, the last that it made (as in the paper: of the last round, the
            consolidated one), `explored`, the last explored one, or the best on the data's validation set by `pass@1`,
            or by `pass@k` at the largest --eval.k, among all that were evaluated.
        on_empty_expert_set: when the filter lets nothing through, `continue` with the next round from the policy that
            this one began with, or `stop` the run there.
        checkpoint_every_n_steps: training steps between the checkpoints that --resume goes on from; 0 saves none but
            on SIGTERM and Ctrl-C.
    """

    rounds: PositiveInt = 3
    explore_steps: PositiveInt = 200
    problems_per_step: PositiveInt = 64
    rollouts_per_problem: PositiveInt = 8
    select: Select = "last"
    on_empty_expert_set: Literal["continue", "stop"] = "continue"
    checkpoint_every_n_steps: NonNegativeInt = 10

    def __post_init__(self) -> None:
        check_fields(self, "--loop")


@dataclass(frozen=True)
class Stage:
    """One phase of a run; `which` says what policy an evaluation is of."""

    round: int
    phase: Phase
    which: Which = "base"

    @property
    def name(self) -> str:
        """What its policy is called in the table, rounds counted from 1: "round 1 explored"."""
        return "base" if self.which == "base" else f"round {self.round + 1} {self.which}"


def plan(rounds: int, *, consolidates: bool) -> list[Stage]:
    """The stages of a run, in order. Without a consolidation there is one exploration, however many rounds."""
    stages = [Stage(0, "evaluate", "base")]
    for number in range(rounds if consolidates else 1):
        stages += [Stage(number, "explore", "explored"), Stage(number, "evaluate", "explored")]
        if consolidates:
            stages += [Stage(number, "consolidate", "consolidated"), Stage(number, "evaluate", "consolidated")]
    return stages


@dataclass(frozen=True)
class Budget:
    """What a run has spent; evaluations and extra captures are not part of it, filtered groups are.

    Args:
        rollout_steps: rollout steps of all explorations.
        optimizer_steps: parameter updates of all phases, without those that were skipped.
        rollouts: rollouts generated to train on.
        tokens: completion tokens generated to train on.
        seconds: wall-clock time of all stages.
    """

    rollout_steps: int = 0
    optimizer_steps: int = 0
    rollouts: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Budget) -> Budget:
        return Budget(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True)
class StageOutcome:
    """What a stage gave.

    Args:
        spent: its cost.
        results: metrics by policy.
        note: something that the reader of the results must know.
        stops: whether the run ends here, before its plan does.
    """

    spent: Budget = field(default_factory=Budget)
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""
    stops: bool = False


@dataclass(frozen=True)
class LoopState:
    """Where a run stands. Written atomically after every stage.

    Args:
        run_id: drawn when the run began, kept over resumes.
        stages_done: stages of the plan that are complete.
        round: round of the stage that comes next.
        phase: phase of the stage that comes next, `done` after the last.
        stopped: whether the run ended before its plan did.
        notes: what the reader of the results must know.
        selected: name of the policy in `final/`, once there is one.
        budget: spent in complete stages.
        results: metrics of every evaluated policy by its name, in order.
    """

    run_id: str
    stages_done: int = 0
    round: int = 0
    phase: str = "evaluate"
    stopped: bool = False
    notes: tuple[str, ...] = ()
    selected: str = ""
    budget: Budget = field(default_factory=Budget)
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        values = asdict(self)
        write_text(path, json.dumps({**values, _CHECKSUM: _checksum(values)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> LoopState:
        """Read a state that was saved.

        Raises:
            DamagedError: the file is missing, or does not hold what was written to it.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            checksum = values.pop(_CHECKSUM)
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing") from None
        except (ValueError, KeyError, AttributeError, TypeError):
            checksum = None
        if checksum is None or checksum != _checksum(values):
            raise DamagedError(f"{path} does not hold what was written to it (its checksum differs)")
        return cls(**{**values, "budget": Budget(**values["budget"]), "notes": tuple(values["notes"])})

    @property
    def checksum(self) -> str:
        """The same for states that hold the same."""
        return _checksum(asdict(self))

    def after(self, stages: list[Stage], outcome: StageOutcome) -> LoopState:
        """The state once the next stage of the plan is complete."""
        done = self.stages_done + 1
        following = stages[done] if done < len(stages) and not outcome.stops else None
        results = {name: {**self.results.get(name, {}), **metrics} for name, metrics in outcome.results.items()}
        return replace(
            self,
            stages_done=done,
            round=following.round if following else self.round,
            phase=following.phase if following else "done",
            stopped=outcome.stops,
            notes=(*self.notes, outcome.note) if outcome.note else self.notes,
            budget=self.budget + outcome.spent,
            results={**self.results, **results},
        )


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
