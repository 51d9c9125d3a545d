"""What a resume may change: settings that the run still has to read, and the phase to go back to.

A setting takes effect where the run has not been yet. The settings of the policy, the problems, the reward, the engine
and the evaluations stay as they are, because results with different ones can't be compared within one run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from rloop_lightning.errors import DamagedError, StateError
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.settings import flat, recorded_settings
from rloop_lightning.run.state import LoopState, Stage, plan
from rloop_lightning.system.imports import is_unnamed

# Settings that do not affect the results, or only their rounding, for a machine with less memory. They apply to the
# resume that gives them.
_FREE = (
    "resume",
    "restart_from",
    "trust",
    "out",
    "debug",
    "dry_run",
    "plan.",
    "loop.select",
    "loop.keep_policies",
    "loop.show_completions",
    "hub.",
    "loop.checkpoint_every_n_steps",
    "trainer.",
    "engine.max_rows",
    "engine.mode",
    "engine.url",
    "engine.python",
    "engine.devices",
    "engine.tensor_parallel",
    "engine.memory_share",
    "engine.cpu_cache_gib",
    "engine.sleep",
    "engine.options",
    "engine.start_s",
    "engine.timeout_s",
    "engine.max_gap_nats",
    "policy.max_tokens_per_micro_batch",
    "policy.lora.merge",
)
# Settings that are read in every step, so that they take effect where the run resumes.
_AT_ONCE = (
    "gradient.",
    "capture.",
    "loop.on_too_few_groups",
    "loop.on_empty_expert_set",
    "loop.problems_per_step",
    "loop.rollouts_per_problem",
    "algo.dynamic_sampling",
    "algo.max_generation_batches",
)
# Settings that take effect when the next phase of this kind begins.
_BY_PHASE = {"algo.": "explore", "consolidate.": "consolidate", "filter.": "consolidate"}
_SIZES = ("loop.rounds", "loop.explore_steps")
_CLASSES = ("algo.name", "consolidate.name")


@dataclass(frozen=True)
class Edit:
    """A setting that a resume changes."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"--{self.key} {self.after} (before: {self.before})"


@dataclass(frozen=True)
class Resumption:
    """What a resume does differently.

    Args:
        note: a note on changed settings for readers of the results.
        restart_from: the phase to repeat, and everything after it, such as `round-1/explore`; None continues.
        settings: all settings of the run, with changes; None keeps those that it has.
        base_fault: why the base policy can't be loaded, so that another policy of the run is in the model; empty if it
            is there.
    """

    note: str = ""
    restart_from: str | None = None
    settings: Mapping[str, Any] | None = None
    base_fault: str = ""


@dataclass(frozen=True)
class Edits:
    """The settings that a resume changes, and why some of them can't be changed.

    Args:
        changes: the changes that affect results.
        faults: why changes are impossible, one message each.
        settings: all settings of the run, with the changes.
    """

    changes: Sequence[Edit] = ()
    faults: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """A note on the changes for readers of the results; empty if there are none."""
        return "resumed with " + ", ".join(map(str, self.changes)) if self.changes else ""


def find_edits(run: RunFolder, now: str, defaults: str, restart_from: str | None) -> Edits:
    """Compare the current settings with those that the run started with.

    Args:
        run: an existing run.
        now: the current settings, as YAML.
        defaults: the defaults of all settings, as YAML. They stand for options that did not exist when the run began.
        restart_from: the phase to go back to, such as `round-1/explore`; None continues where the run is.
    """
    current = yaml.safe_load(now)
    settings = copy.deepcopy(recorded_settings(run))
    after = dict(flat(current))
    for key, value in flat(yaml.safe_load(defaults)):
        if key in after and not _has(settings, key):
            _set(settings, key, value)
    before = dict(flat(settings))
    # The user passes a Python object without an import path again, in any form.
    free = (*_FREE, *(name.removesuffix("name") for name, value in before.items() if is_unnamed(value)))
    changes = [
        Edit(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(free)
    ]
    for edit in changes:
        _set(settings, edit.key, edit.after)
    changes = _without_fields_of_other_classes(changes)
    try:
        position = _Position.of(run, current, restart_from)
    except ValueError as error:
        return Edits(faults=[str(error)])
    faults = [f"--resume: {fault}" for edit in changes if (fault := position.fault(edit))]
    return Edits(changes, faults or position.useless(changes), settings)


def _without_fields_of_other_classes(changes: Sequence[Edit]) -> list[Edit]:
    """The edits without those of fields that came or went with another class of their group."""
    renamed = tuple(edit.key.removesuffix("name") for edit in changes if edit.key in _CLASSES)
    return [edit for edit in changes if edit.key in _CLASSES or not (renamed and edit.key.startswith(renamed))]


def takes_effect_at_once(key: str) -> bool:
    """Whether a resume may change this setting in the middle of a phase."""
    return key.startswith((*_FREE, *_AT_ONCE))


def restart_stage(run: RunFolder, stages: Sequence[Stage], restart_from: str) -> Stage:
    """The stage that `--restart_from` names.

    Raises:
        ValueError: there is no such phase, or it has not begun.
    """
    begun = [stage for stage in stages if stage.phase != "evaluate" and run.state_before(stage).exists()]
    state, _ = run.newest_state()
    done = len(stages) if state is None else state.stages_done
    reached = set(stages[: done + 1])
    begun = [stage for stage in begun if stage in reached]
    named = {run.phase(stage).relative_to(run.out).as_posix(): stage for stage in begun}
    if restart_from.strip("/") not in named:
        raise ValueError(
            f"--restart_from {restart_from}: take a phase that has begun: {', '.join(named) or 'there is none yet'}"
        )
    stage = named[restart_from.strip("/")]
    initial = run.initial_policy(stage)
    if initial is not None and not run.holds_policy(initial):
        raise ValueError(
            f"--restart_from {restart_from}: the policy that the round began with was deleted (--loop.keep_policies "
            "last); take a later phase"
        )
    return stage


@dataclass(frozen=True)
class _Position:
    """Where a run resumes: the next stage of its plan, None after the last, and what was done of it."""

    stages: Sequence[Stage]
    stages_done: int
    steps_done: int
    explore_steps: Sequence[int]
    consolidates: bool
    stopped: bool

    @classmethod
    def of(cls, run: RunFolder, settings: Mapping[str, Any], restart_from: str | None) -> _Position:
        consolidates = settings["consolidate"]["name"] != "none"
        stages = plan(settings["loop"]["rounds"], consolidates=consolidates)
        if restart_from is not None:
            stage = restart_stage(run, stages, restart_from)
            try:
                state = LoopState.load(run.state_before(stage))
            except DamagedError as error:
                raise StateError(f"--restart_from {restart_from}: {error}; take an earlier phase") from error
            return cls(stages, state.stages_done, 0, state.explore_steps[: stage.round], consolidates, False)
        state = run.newest_state()[0] or LoopState("")
        steps = run.steps_done(stages[state.stages_done]) if state.stages_done < len(stages) else 0
        stopped = state.stopped and settings["loop"]["on_empty_expert_set"] != "continue"
        return cls(stages, state.stages_done, steps, state.explore_steps, consolidates, stopped)

    def fault(self, edit: Edit) -> str:
        """Why this setting can't be changed here; empty if it can."""
        if edit.key in _SIZES:
            return self._size_fault(edit)
        if edit.key.startswith(_AT_ONCE):
            return ""
        phase = next((phase for prefix, phase in _BY_PHASE.items() if edit.key.startswith(prefix)), None)
        if phase is None or edit.key in _CLASSES:
            return (
                f"--{edit.key} was {edit.before!r} when the run started and is {edit.after!r} now; leave it out, or "
                "start a new run"
            )
        if self._next is not None and self._next.phase == phase and self.steps_done:
            folder = f"round-{self._next.round}/{phase}"
            return (
                f"--{edit.key} takes effect at the beginning of a phase, and {folder} has done {self.steps_done} "
                f"training steps; leave it out, or repeat the phase with --restart_from {folder}"
            )
        if not any(stage.phase == phase for stage in self.stages[self.stages_done :]):
            return f"--{edit.key}: no {phase} phase is left; add rounds with --loop.rounds, or leave it out"
        return ""

    def useless(self, changes: Sequence[Edit]) -> list[str]:
        """Why no change can have an effect; empty if there are none."""
        names = " ".join(f"--{edit.key}" for edit in changes)
        if changes and self.stopped:
            return [
                f"--resume: {names}: the run stopped because an expert set was empty; add "
                "--loop.on_empty_expert_set continue to go on"
            ]
        if changes and self._next is None and any(edit.key not in _SIZES for edit in changes):
            return [f"--resume: {names}: the run is complete; add rounds with --loop.rounds, or leave it out"]
        return []

    @property
    def _next(self) -> Stage | None:
        return self.stages[self.stages_done] if self.stages_done < len(self.stages) else None

    def _size_fault(self, edit: Edit) -> str:
        begun = len(self.explore_steps)
        if not self.consolidates and begun:
            return (
                f"--{edit.key}: without consolidation a run is one exploration, which began with "
                f"{self.explore_steps[0]} rollout steps; leave it out, or start a new run"
            )
        if edit.key == "loop.rounds" and edit.after < begun:
            return f"--loop.rounds {edit.after}: {begun} rounds have begun; take at least {begun}"
        rounds = max((stage.round for stage in self.stages), default=0) + 1
        if edit.key == "loop.explore_steps" and self.consolidates and rounds <= begun:
            return f"--loop.explore_steps {edit.after}: all {rounds} rounds have begun; add some with --loop.rounds"
        return ""


def _has(settings: Mapping[str, Any], key: str) -> bool:
    """Whether a dotted key, or a part of it with a value that is not a group, is set."""
    group: Any = settings
    for name in key.split("."):
        if not isinstance(group, Mapping):
            return True
        if name not in group:
            return False
        group = group[name]
    return True


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *groups, name = key.split(".")
    for one in groups:
        inner = settings.get(one)
        settings[one] = inner if isinstance(inner, dict) else {}  # null may stand for an empty group
        settings = settings[one]
    settings[name] = value
