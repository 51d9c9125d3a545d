"""Runs in a comparison: each belongs to an arm and has a seed. The runs of an arm differ in the seed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rloop_lightning.evaluation.record_values import other_verdicts
from rloop_lightning.run.report.facts import method, seed
from rloop_lightning.run.report.stored import EvaluatedStage, ReportedRun
from rloop_lightning.run.settings import flat
from rloop_lightning.system.terminal import one_line

_OF_A_RUN = ("seed_everything", "out", "resume", "restart_from", "debug", "dry_run", "version")
"""Settings that may differ between the runs of an arm."""
_MOST_NAMED = 3  # settings in the name of an arm
_LONGEST_VALUE = 100  # characters of a setting that are shown
_BEFORE = 20  # characters before those in which values part


@dataclass(frozen=True)
class ComparedRun:
    """A run of a comparison.

    Args:
        run: the run.
        arm: the name of its arm.
        seed: its seed.
    """

    run: ReportedRun
    arm: str
    seed: int


@dataclass(frozen=True)
class Arm:
    """The runs of an arm, by seed."""

    name: str
    runs: Mapping[int, ReportedRun]

    @property
    def final(self) -> Mapping[int, EvaluatedStage]:
        """The policy that each run hands over, or its last evaluated one, as far as their records exist."""
        found = {number: run.policy(run.last_policy) for number, run in self.runs.items()}
        return {number: policy for number, policy in found.items() if policy is not None}

    @property
    def base(self) -> Mapping[int, EvaluatedStage]:
        """The base policy of each run, as far as its record exists."""
        found = {number: run.policy("base") for number, run in self.runs.items()}
        return {number: policy for number, policy in found.items() if policy is not None}

    @property
    def explored(self) -> Mapping[int, EvaluatedStage]:
        """The last explored policy of each run that has one."""
        found = {
            number: [one for one in run.policies if one.name.endswith("explored")] for number, run in self.runs.items()
        }
        return {number: policies[-1] for number, policies in found.items() if policies}


@dataclass(frozen=True)
class ComparedArms:
    """Arms in the order in which they are first named. The first one is what the others are compared with."""

    runs: Sequence[ComparedRun]

    @cached_property
    def arms(self) -> list[Arm]:
        """The arms.

        Raises:
            ValueError: two runs of an arm have the same seed.
        """
        found: dict[str, dict[int, ReportedRun]] = {}
        for one in self.runs:
            seeds = found.setdefault(one.arm, {})
            if one.seed in seeds:
                raise ValueError(
                    f"{seeds[one.seed].folder.out} and {one.run.folder.out} are both seed {one.seed} of "
                    f"{one_line(one.arm)}; leave one out, or name the arms of the runs apart"
                )
            seeds[one.seed] = one.run
        return [Arm(name, dict(sorted(seeds.items()))) for name, seeds in found.items()]

    @cached_property
    def judged_otherwise(self) -> Mapping[str, str]:
        """By arm, what tells that its reward takes other rollouts for successes than the first arm's does."""
        first, *others = self.arms
        found = {}
        for arm in others:
            for number in arm.base.keys() & first.base.keys():
                with suppress(ValueError):  # a damaged record: the tables tell it
                    if told := other_verdicts(arm.base[number].record, first.base[number].record):
                        found[arm.name] = f"{one_line(arm.name)} (here) and {one_line(first.name)} (there): {told}"
        return found

    @property
    def sets(self) -> list[str]:
        """The sets that every evaluated run shows."""
        measured = [one.run.sets for one in self.runs if one.run.sets]
        return [name for name in measured[0] if all(name in known for known in measured)] if measured else []

    def ks(self, name: str) -> list[int]:
        """The values of k that every evaluated run measured on one of `sets`."""
        return sorted(set.intersection(*(set(one.run.ks(name)) for one in self.runs if one.run.sets)))

    def differing_settings(self) -> dict[str, list[str]]:
        """Settings that differ between arms: their values, one for each arm."""
        settings = [_settings(next(iter(arm.runs.values()))) for arm in self.arms]
        names = dict.fromkeys(name for one in settings for name in one)
        values = {name: [one.get(name, "not set") for one in settings] for name in names}
        return {name: _apart(of_arms) for name, of_arms in values.items() if len(set(of_arms)) > 1}


def in_arms(runs: Sequence[ReportedRun], names: Sequence[str] | None = None) -> ComparedArms:
    """Runs of equal settings but for the seed as arms.

    Args:
        runs: the runs.
        names: the arm of each run; None groups them by their settings.
    """
    if names is None:
        names = _names(runs)
    return ComparedArms([ComparedRun(run, name, _seed(run)) for run, name in zip(runs, names, strict=True)])


def _names(runs: Sequence[ReportedRun]) -> list[str]:
    """The name of each run's arm: method, else what differs in settings, else the name of the folder."""
    settings = [tuple(sorted(_settings(run).items())) for run in runs]
    first = {one: runs[settings.index(one)] for one in settings}
    methods = {one: _method(run) for one, run in first.items()}
    if len(set(methods.values())) == len(methods):
        return [methods[one] for one in settings]
    shared = set.intersection(*(set(one) for one in first))
    different = {
        one: [f"{name} {one_line(value)}" for name, value in one if (name, value) not in shared] for one in first
    }
    short = {one: ", ".join([methods[one], *named[:_MOST_NAMED]]) for one, named in different.items()}
    if len(set(short.values())) == len(short):
        return [short[one] for one in settings]
    return [one_line(run.title) for run in runs]


def _method(run: ReportedRun) -> str:
    algo, consolidation = method(run)
    return f"{algo} + {consolidation}" if run.consolidates else algo


def _seed(run: ReportedRun) -> int:
    text = seed(run)
    return int(text) if text.lstrip("-").isdigit() else 0


def _settings(run: ReportedRun) -> dict[str, str]:
    """The settings of a run that its arm has in common."""
    kept = {name: value for name, value in run.settings.items() if name not in _OF_A_RUN}
    return {one_line(name, limit=100): one_line(str(value), limit=0) for name, value in flat(kept)}


def _apart(values: Sequence[str]) -> list[str]:
    """Values cut to a length, from where they part if the cut would leave them equal."""
    short = [one_line(value, limit=_LONGEST_VALUE) for value in values]
    if len(set(short)) == len(set(values)):
        return short
    shared = next((n for n, letters in enumerate(zip(*set(values), strict=False)) if len(set(letters)) > 1), 0)
    start = max(0, shared - _BEFORE)
    return [f"... {one_line(value[start:], limit=_LONGEST_VALUE)}" for value in values]


def place_of(run: ReportedRun, page: Path) -> str:
    """Where a run lies, seen from the folder of the page if it is below it."""
    out, base = run.folder.out.resolve(), page.resolve().parent
    return str(out.relative_to(base)) if out.is_relative_to(base) else str(out)
