"""The plan and the state of a run: `LoopConfig`, the list of stages, and `LoopState` in state.json.

`STATE_VERSION` is the version of the format of state.json and of the settings in it. A new field of `LoopState` has a
default, for states of older versions. A new option of a class needs nothing here: a resume of an older run takes its
default. An option that is renamed or removed needs a new version and an entry in `_UPGRADES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from rloop_lightning.errors import DamagedError
from rloop_lightning.rollouts.stream import OnTooFewGroups
from rloop_lightning.system.fields import NonNegativeInt, PositiveInt, check_fields
from rloop_lightning.system.json_file import json_checksum, read_json, write_json
from rloop_lightning.system.terminal import one_line

Phase = Literal["explore", "consolidate", "evaluate"]
TRAINS: tuple[Phase, ...] = ("explore", "consolidate")
"""The phases that train, in order."""
Which = Literal["base", "explored", "consolidated"]
Select = Literal["last", "explored", "pass@1", "pass@k"]

STATE_VERSION = 1
_UPGRADES: Mapping[int, Callable[[dict[str, Any]], None]] = {
    0: lambda values: None,  # lacks fields, which have defaults
}
"""By version: changes the values of a state of that version to those of the next, in place."""


@dataclass(frozen=True)
class LoopConfig:
    """The outer loop: the number of rounds, their length, and the size of a rollout step.

    Three rounds of 200 rollout steps of 16 rollouts per problem are the paper's (arXiv 2511.04285). The other defaults
    are ours: 128 problems per rollout step visit each of 20,000 problems once per round.

    Args:
        rounds: rounds of exploration and consolidation. Without consolidation, the run is one uninterrupted exploration
            with the same number of rollout steps. A resume may set more.
        explore_steps: rollout steps of a round's exploration.
        explore_tokens: completion tokens that a round's exploration generates to train on. It ends after the rollout
            step that reaches them, or after `explore_steps`; null is no limit.
        problems_per_step: groups that a rollout step trains on; null takes 128, or all training problems if there are
            fewer.
        rollouts_per_problem: rollouts per group. The lowest success rate above 0 of a problem that is visited once is
            1 / rollouts_per_problem, which --filter.max_success_rate must exceed.
        staleness: rollout steps that are generated ahead: step k + staleness is begun when step k trains. With an
            engine in a process of its own, it is generated meanwhile; with --engine torch, this makes nothing faster.
            Above 0, --algo.importance_correction is on by default.
        in_flight_updates: with `staleness`, give new weights to an engine in the middle of its completions, so that it
            never waits for the updates. Which tokens have which weights depends on the clock, so a resumed run has
            other rollouts.
        select: the policy that the run hands over, `last`, `explored`, `pass@1` or `pass@k`: the last policy of the
            run (as in the paper, the consolidated policy of the last round; the explored one if that round's expert set
            was empty), the last explored policy, or the best evaluated policy on the validation set by pass@1, or by
            pass@k at the largest --eval.k.
        on_empty_expert_set: what to do when the expert set is empty: `continue` with the next round from the same
            initial policy, `stop` the run and hand over a policy, or end it with an `error`.
        on_too_few_groups: what to do when a rollout step reaches its limit before it has enough groups to train on
            (with --algo.dynamic_sampling or --algo.unsolved_only): `end_phase` ends the exploration, and the round goes
            on to the filter; `train` trains on the groups it has; `stop` ends the run with an error.
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
    explore_tokens: PositiveInt | None = None
    problems_per_step: PositiveInt | None = None
    rollouts_per_problem: PositiveInt = 16
    staleness: NonNegativeInt = 0
    in_flight_updates: bool = False
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
        seconds: wall-clock time of all stages, without what a kill lost.
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
        settings: all settings, as groups. config.yaml is written from them.
        began: the date of the run's start, which chat templates see; ISO format.
        machine: what decides the rounding of results (machine.py).
        base: checksums of the base policy's files by name, if it is a local folder.
        versions: the software that the run began with (versions.py).
        saves: how often the run's state was saved before and in this file; tells a newer copy of the run from an older
            one. It is no part of the content.
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
    settings: Mapping[str, Any] = field(default_factory=dict)
    began: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    saves: int = field(default=0, compare=False)

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        write_json(path, self._values(), version=STATE_VERSION)

    @classmethod
    def load(cls, path: Path) -> LoopState:
        """Read a saved state, of this version or an older one.

        Raises:
            DamagedError: the file is missing, or its content is not a state that was written.
            StateError: a newer version wrote it.
        """
        values, version = read_json(path, newest=STATE_VERSION)
        for older in range(version, STATE_VERSION):
            _UPGRADES[older](values)
        if unknown := values.keys() - {one.name for one in fields(cls)}:
            raise DamagedError(f"{path} is damaged (it has unknown fields: {one_line(', '.join(sorted(unknown)))})")
        try:
            state = cls(**{**values, "budget": Budget(**values.get("budget", {}))})
            state = replace(state, notes=tuple(state.notes), explore_steps=tuple(state.explore_steps))
        except TypeError as error:
            raise DamagedError(f"{path} is damaged ({one_line(str(error))})") from error
        if wrong := [name for name, holds in _HOLDS.items() if not holds(getattr(state, name))]:
            raise DamagedError(f"{path} is damaged (wrong values of {', '.join(wrong)})")
        return state

    @property
    def checksum(self) -> str:
        """A checksum of the content; equal for equal states."""
        return json_checksum({name: value for name, value in self._values().items() if name != "saves"})

    def _values(self) -> dict[str, Any]:
        """The fields by name, for JSON. `asdict` would copy all settings, several times a phase."""
        return {**vars(self), "budget": asdict(self.budget)}

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


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _is_mapping(value: Any, holds: Callable[[Any], bool] = lambda value: True) -> bool:
    return isinstance(value, Mapping) and all(map(holds, value.values()))


# A checksum tells damage, but not who wrote a file.
_HOLDS: Mapping[str, Callable[[Any], bool]] = {
    "run_id": _is_text,
    "stages_done": _is_count,
    "round": _is_count,
    "phase": _is_text,
    "stopped": lambda value: isinstance(value, bool),
    "notes": lambda value: all(map(_is_text, value)),
    "selected": _is_text,
    "explore_steps": lambda value: all(map(_is_count, value)),
    "budget": lambda value: _is_mapping(asdict(value), _is_number),
    "results": lambda value: _is_mapping(value, lambda metrics: _is_mapping(metrics, _is_number)),
    "settings": _is_mapping,
    "began": _is_text,
    "machine": _is_mapping,
    "base": lambda value: _is_mapping(value, _is_text),
    "versions": lambda value: _is_mapping(value, _is_text),
    "saves": _is_count,
}
"""By field of `LoopState`: whether a value from a file can be one of it."""
