"""From what a study compares to its arms with all their settings, checked as `rloop-fit` checks them.

The settings of an arm are, from the lowest to the highest: presets and settings files, the study's base, what the arm
sets, and the options of `rloop-fit` on the command line.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rloop_lightning.cli.arguments import DEFAULT_PRESET, Arguments, UsageError, pairs
from rloop_lightning.cli.fit import RLoopCLI
from rloop_lightning.cli.merge import fields_of
from rloop_lightning.cli.options import RUN_OPTIONS
from rloop_lightning.cli.prepare import faults_outside
from rloop_lightning.cli.study_file import StudyPlan
from rloop_lightning.cli.swappable import SWAPPABLE
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.study import Arm, BudgetRule
from rloop_lightning.system.terminal import one_line

_OF_SINGLE_RUNS = {
    "--resume": "run the same command again, which goes on with what is missing",
    "--seed_everything": "give --seeds",
    "--restart_from": "restart a cell by rloop-fit",
    "--debug": "it belongs to rloop-fit",
    "--trust": "it belongs to rloop-fit --resume",
    "--print_config": "the settings of an arm are in its settings.yaml",
    "--print_shtab": "it belongs to rloop-fit",
    "--help_all": "rloop-fit --help_all lists the options of cells",
}


@dataclass(frozen=True)
class CheckedArm:
    """An arm whose settings were accepted.

    Args:
        arm: the arm.
        parts: the parts of its runs.
        defaults: of all settings, as groups.
    """

    arm: Arm
    parts: Parts
    defaults: Mapping[str, Any]


def checked_arms(plan: StudyPlan, options: Sequence[str], seed: int) -> list[CheckedArm]:
    """The arms of a study.

    Args:
        options: the options of `rloop-fit` on the command line, `--flag=value` each.
        seed: a seed of the study, with which the settings are checked.

    Raises:
        UsageError: names all errors.
    """
    if wrong := [*_of_single_runs(options), *_set_twice(plan, options)]:
        raise UsageError("\n".join(dict.fromkeys(wrong)))
    faults: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="rloop-compare-") as folder:
        writer = _Files(Path(folder), plan, default=not any(flag.startswith("--policy.model") for flag in options))
        files = {name: writer.flags(name, sets) for name, sets in plan.arms.items()}
        unknown = _fields_of_no_arm(files.values(), options)
        found: list[CheckedArm] = []
        for name, flags in files.items():
            try:
                fitting = _fitting(flags, options, unknown)
                found.append(_checked(name, plan.arms[name], [*flags, *fitting, f"--seed_everything={seed}"]))
            except UsageError as error:
                for line in str(error).splitlines():
                    faults.setdefault(writer.named(line), []).append(one_line(name))
    wrong = [
        fault if len(names) == len(plan.arms) else f"arm {', '.join(names)}: {fault}" for fault, names in faults.items()
    ]
    if wrong := [*wrong, *_name_faults([one.arm for one in found]), *_twins([one.arm for one in found])]:
        raise UsageError("\n".join(dict.fromkeys(wrong)))
    return found


def budget_faults(rule: BudgetRule, arms: Sequence[CheckedArm]) -> list[str]:
    """A message if the arms can't have the same budget."""
    if rule == "tokens":
        scheduled = [one.arm.name for one in arms if one.parts.algorithm.lr_schedule != "constant"]
        return [
            f"--budget tokens: arm {name}: its learning rate would decay over a number of steps that is not known; set "
            "--algo.lr_schedule constant"
            for name in scheduled
        ]
    planned = {
        one.arm.name: one.parts.explorations
        * one.parts.explore_steps
        * one.parts.problems_per_step
        * one.parts.loop.rollouts_per_problem
        for one in arms
    }
    if rule != "rollout_steps" or len(set(planned.values())) == 1:
        return []
    told = ", ".join(f"{name} {count:,}" for name, count in planned.items())
    return [
        f"--budget rollout_steps: the arms differ in the rollouts that they train on: {told}; make rounds x "
        "explore_steps x problems_per_step x rollouts_per_problem equal, or give --budget tokens or free"
    ]


class _Files:
    """The base and what an arm sets, as files for `--config`; messages name the study in their place."""

    def __init__(self, folder: Path, plan: StudyPlan, *, default: bool) -> None:
        self._folder = folder
        self._default = default  # whether the default preset applies where no model is named
        self._plan = plan
        self._names: dict[str, str] = {}

    def flags(self, name: str, sets: Mapping[str, Any]) -> list[str]:
        """The `--config` flags of an arm."""
        own = [
            self._file(f"{number}.yaml", settings, label)
            for number, (settings, label) in enumerate([(self._plan.base, "base"), (sets, f"arms.{name}")])
            if settings
        ]
        configs = list(self._plan.configs)
        names_a_model = any(
            isinstance(policy := settings.get("policy"), Mapping) and "model" in policy
            for settings in (self._plan.base, sets)
        )
        if self._default and not configs and not names_a_model:
            configs = [DEFAULT_PRESET]
        return [f"--config={config}" for config in [*configs, *own]]

    def named(self, message: str) -> str:
        for path, label in self._names.items():
            message = message.replace(f"--config {path}", label)
        return message

    def _file(self, name: str, settings: Mapping[str, Any], label: str) -> str:
        path = self._folder / f"{len(self._names)}-{name}"
        path.write_text(yaml.safe_dump(dict(settings), allow_unicode=True), encoding="utf-8")
        self._names[str(path)] = f"{self._plan.source}: {label}" if self._plan.is_file else self._plan.source
        return str(path)


def _checked(name: str, sets: Mapping[str, Any], flags: Sequence[str]) -> CheckedArm:
    cli = RLoopCLI(flags)
    wrong = faults_outside(cli, cli.policy_config, None)
    if cli.hub.push:
        wrong.append("--hub.push: a study has a policy for each cell; upload one of them from its run folder")
    try:
        parts, unreadable = cli.parts.readable()
        wrong += [*parts.validate(), *unreadable]
    except ValueError as error:
        wrong += str(error).splitlines()
    if wrong:
        raise UsageError("\n".join(wrong))
    return CheckedArm(Arm(name, sets, _settings(cli.settings())), parts, _settings(cli.defaults()))


def _settings(text: str) -> dict[str, Any]:
    """Settings as groups, in values that JSON has, without the options of a single run."""
    values = json.loads(json.dumps(yaml.safe_load(text), default=str))
    return {key: value for key, value in values.items() if key not in RUN_OPTIONS and key != "config"}


def _of_single_runs(options: Sequence[str]) -> Iterator[str]:
    for flag, _ in pairs(options):
        if flag in _OF_SINGLE_RUNS:
            yield f"{flag}: {_OF_SINGLE_RUNS[flag]}; leave it out of rloop-compare"


def _set_twice(plan: StudyPlan, options: Sequence[str]) -> Iterator[str]:
    """Options that would override what an arm sets, and so make arms equal."""
    for flag, _ in pairs(options):
        group, _, name = flag.removeprefix("--").partition(".")
        for arm, sets in plan.arms.items():
            of_group = sets.get(group)
            fields = {"name": of_group} if isinstance(of_group, str) else of_group
            if isinstance(fields, Mapping) and (name or "name") in fields:
                yield f"{flag}: the arm {one_line(arm)} sets it too; leave it out, or change {plan.source}"


def _fields_of_no_arm(files: Iterable[Sequence[str]], options: Sequence[str]) -> set[str]:
    """Options of swappable parts that no arm's part has. They go to every arm, which refuses them."""
    return set(options).difference(*(_fitting(flags, options, set()) for flags in files))


def _fitting(files: Sequence[str], options: Sequence[str], to_all: set[str]) -> list[str]:
    """The options that an arm takes: `--consolidate.lr` is for arms that consolidate."""
    chosen = [option for option, (flag, _) in zip(options, pairs(options), strict=True) if _chooses(flag)]
    choices = Arguments([*files, *chosen]).choices
    fields = {group: fields_of(choice.cls) for group, choice in choices.items()}
    return [
        option
        for option, (flag, _) in zip(options, pairs(options), strict=True)
        if option in to_all or _takes(flag, fields)
    ]


def _chooses(flag: str) -> bool:
    """Whether an option names a file or a swappable part."""
    return flag in ("--config", "-c", *(f"--{group}" for group in SWAPPABLE))


def _takes(flag: str, fields: Mapping[str, set[str]]) -> bool:
    group, dot, name = flag.removeprefix("--").partition(".")
    return group not in fields or not dot or name.partition(".")[0] in {*fields[group], "name"}


def _name_faults(arms: Sequence[Arm]) -> Iterator[str]:
    """Arms that would share a folder, or whose name can't be one."""
    folders: dict[str, str] = {}
    for arm in arms:
        key = arm.folder_name.lower()
        if not key:
            yield f"arm {one_line(repr(arm.name))}: a name needs a letter or a digit"
        elif key in folders:
            others = f"arms {one_line(folders[key])} and {one_line(arm.name)}"
            yield f"{others}: both would be in the folder {key}; rename one"
        folders[key] = arm.name


def _twins(arms: Sequence[Arm]) -> Iterator[str]:
    """Arms of equal settings, whose runs would be the same to the bit."""
    for arm, other in itertools.combinations(arms, 2):
        if arm.settings == other.settings:
            yield f"arms {one_line(arm.name)} and {one_line(other.name)}: their settings are equal; leave one out"
