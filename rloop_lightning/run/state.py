"""The plan and the state of a run: `LoopConfig`, the list of stages, and `LoopState` in state.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rloop_lightning.errors import DamagedError
from rloop_lightning.rollouts.stream import OnTooFewGroups
from rloop_lightning.system.fields import NonNegativeInt, PositiveInt, check_fields
from rloop_lightning.system.files import write_text

Phase = Literal["explore", "consolidate", "evaluate"]
Which = Literal["base", "explored", "consolidated"]
Select = Literal["last", "explored", "pass@1", "pass@k"]

_CHECKSUM = "sha256"
"""The key of the checksum over all other keys of a state file."""


@dataclass(frozen=True)
class LoopConfig:
    """The outer loop: the number of rounds, their length, and the size of a rollout step.

    Three rounds of 200 rollout steps of 16 rollouts per problem are the paper's (arXiv 2511.04285). The other defaults
    are ours: 128 problems per rollout step visit each of 20,000 problems once per round.

    Args:
        rounds: rounds of exploration and consolidation. Without consolidation, the run is one uninterrupted exploration
            with the same number of rollout steps. A resume may set more.
        explore_steps: rollout steps of a round's exploration.
        problems_per_step: groups that a rollout step trains on; null takes 128, or all training problems if there are
            fewer.
        rollouts_per_problem: rollouts per group. The lowest success rate above 0 of a problem that is visited once is
            1 / rollouts_per_problem, which --filter.max_success_rate must exceed.
        select: the final policy of the run: `last`, the last policy of the run (as in the paper, the consolidated
            policy of the last round; the explored one if that round's expert set was empty), `explored`, the last
            explored policy, or the best evaluated policy on the validation set by `pass@1`, or by `pass@k` at the
            largest --eval.k.
        on_empty_expert_set: what to do when the expert set is empty: `continue` with the next round from the same
            initial policy, `stop` the run and hand over a policy, or end it with an `error`.
        on_too_few_groups: what to do when dynamic sampling reaches its limit before it has enough groups: `end_phase`
            ends the exploration, and the round goes on to the filter; `train` trains on the groups it has; `stop` ends
            the run with an error.
        keep_policies: policies of phases that stay on disk: `all`, two per round, or `last`, only those that a resume
            or the hand-over can still need: the last explored one, the last two consolidated ones, and the best one so
            far if `select` is a pass@k.
        checkpoint_every_n_steps: training steps between checkpoints, from which --resume continues; 0 saves them only
            on SIGTERM and Ctrl-C.
        show_completions: rollout steps between sample completions in the log, a right and a wrong one, beginning with
            the first step; 0 shows none.
    """

    rounds: PositiveInt = 3
    explore_steps: PositiveInt = 200
    problems_per_step: PositiveInt | None = None
    rollouts_per_problem: PositiveInt = 16
    select: Select = "last"
    on_empty_expert_set: Literal["continue", "stop", "error"] = "continue"
    on_too_few_groups: OnTooFewGroups = "end_phase"
    keep_policies: Literal["all", "last"] = "all"
    checkpoint_every_n_steps: NonNegativeInt = 10
    show_completions: NonNegativeInt = 50

    def __post_init__(self) -> None:
        check_fields(self, "--loop")


@dataclass(frozen=True)
class Stage:
    """One phase of a run. `which` is the policy that an evaluation measures."""

    round: int
    phase: Phase
    which: Which = "base"

    @property
    def name(self) -> str:
        """The name of its policy in the results table, with rounds from 1: "round 1 explored"."""
        return "base" if self.which == "base" else f"round {self.round + 1} {self.which}"


def plan(rounds: int, *, consolidates: bool) -> list[Stage]:
    """The stages of a run, in order. Without consolidation there is one exploration, whatever the number of rounds."""
    stages = [Stage(0, "evaluate", "base")]
    for number in range(rounds if consolidates else 1):
        stages += [Stage(number, "explore", "explored"), Stage(number, "evaluate", "explored")]
        if consolidates:
            stages += [Stage(number, "consolidate", "consolidated"), Stage(number, "evaluate", "consolidated")]
    return stages


@dataclass(frozen=True)
class Budget:
    """The cost of a run. It includes filtered groups, but no evaluations or extra captures.

    Args:
        rollout_steps: rollout steps of all explorations.
        optimizer_steps: optimizer steps of all phases, without skipped ones.
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
    """The outcome of a stage.

    Args:
        spent: its cost.
        results: metrics by policy.
        note: a note for readers of the results.
        stops: whether the run ends here, before the end of its plan.
    """

    spent: Budget = field(default_factory=Budget)
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""
    stops: bool = False


@dataclass(frozen=True)
class LoopState:
    """The state of a run. It is written atomically after every stage.

    Args:
        run_id: random id of the run, kept on resume.
        stages_done: number of complete stages of the plan.
        round: round of the next stage.
        phase: phase of the next stage, `done` after the last.
        stopped: whether the run ended before the end of its plan.
        notes: notes for readers of the results.
        selected: name of the policy in `final/`, once there is one.
        explore_steps: rollout steps of each exploration that has begun. A resume may change those of later ones.
        budget: cost of the complete stages.
        results: metrics of every evaluated policy by name, in order.
    """

    run_id: str
    stages_done: int = 0
    round: int = 0
    phase: str = "evaluate"
    stopped: bool = False
    notes: tuple[str, ...] = ()
    selected: str = ""
    explore_steps: tuple[int, ...] = ()
    budget: Budget = field(default_factory=Budget)
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        values = asdict(self)
        write_text(path, json.dumps({**values, _CHECKSUM: _checksum(values)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> LoopState:
        """Read a saved state.

        Raises:
            DamagedError: the file is missing or its checksum differs.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            checksum = values.pop(_CHECKSUM)
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing") from None
        except (ValueError, KeyError, AttributeError, TypeError):
            checksum = None
        if checksum is None or checksum != _checksum(values):
            raise DamagedError(f"{path} is damaged (its checksum differs)")
        lists = {name: tuple(values[name]) for name in ("notes", "explore_steps")}
        return cls(**{**values, **lists, "budget": Budget(**values["budget"])})

    @property
    def checksum(self) -> str:
        """A checksum of the content; equal for equal states."""
        return _checksum(asdict(self))

    def begun(self, stage: Stage, explore_steps: int) -> LoopState:
        """The state with the length of the exploration that begins, which stays as it is on resume."""
        if stage.phase != "explore" or len(self.explore_steps) > stage.round:
            return self
        return replace(self, explore_steps=(*self.explore_steps, explore_steps))

    def after(self, stages: list[Stage], outcome: StageOutcome) -> LoopState:
        """The state after the next stage of the plan."""
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
