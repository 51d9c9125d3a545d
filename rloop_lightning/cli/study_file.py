"""Reads what a study compares: from a YAML file, or from `--algos` and `--consolidate`.

    config: countdown                          # preset or settings file, or a list of them
    base: {loop: {explore_steps: 60}}          # settings of every arm
    arms:
      dapo: {consolidate: none}
      rloop: {consolidate: rft, filter.max_success_rate: 0.1}
      threshold:
        consolidate: rft
        grid: {filter.max_success_rate: [0.05, 0.2, 0.5]}     # an arm per value
    grid: {algo.lr: [1e-4, 2e-4]}              # every arm with each value
    seeds: [0, 1, 2]
    budget: rollout_steps

The settings of `base` and of the arms are those of a settings file; a dotted key is a setting in its group.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.cli.config_files import settings_in
from rloop_lightning.run.study import BudgetRule
from rloop_lightning.system.fields import Seed
from rloop_lightning.system.terminal import one_line

_NAMES = "--algos, --consolidate"
_KEYS = ("config", "base", "arms", "grid", "seeds", "budget")


@dataclass(frozen=True)
class StudyPlan:
    """What a study compares.

    Args:
        source: where it is written, for messages.
        arms: by name, the settings in which the arm departs from the base, as groups.
        configs: presets and settings files below the base.
        base: settings of every arm, as groups.
        seeds: seeds; None if none are given.
        budget: what arms have in equal amounts; None if it is not given.
    """

    source: str
    arms: Mapping[str, Mapping[str, Any]]
    configs: Sequence[str] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] | None = None
    budget: BudgetRule | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is written in a file, which has a section for each arm."""
        return self.source != _NAMES


def plan_of_names(algos: Sequence[str], consolidate: Sequence[str]) -> StudyPlan:
    """Every algorithm with every consolidation. The arms are named `dapo+rft`."""
    choices = [[("algo", name) for name in algos], [("consolidate", name) for name in consolidate]]
    arms = {
        "+".join(name.rpartition(".")[2] for _, name in chosen): dict(chosen)
        for chosen in itertools.product(*filter(None, choices))
    }
    if len(arms) < max(1, len(algos)) * max(1, len(consolidate)):
        raise UsageError(f"{_NAMES}: a name is there twice; leave it out")
    return StudyPlan(_NAMES, arms)


def read_plan(path: str) -> StudyPlan:
    """The study in a YAML file.

    Raises:
        UsageError: the file can't be read, or is not a study; names all errors.
    """
    if not Path(path).is_file():
        raise UsageError(f"no study file {one_line(path, limit=200)!r}")
    wrong: list[str] = []
    content = settings_in(Path(path), one_line(path, limit=200), wrong)
    if wrong:
        raise UsageError("\n".join(wrong))
    if isinstance(command := content.get("command"), str):
        shown = one_line(command, limit=500)
        raise UsageError(f"{one_line(path, limit=200)}: the record of a study, not a study file; repeat it by: {shown}")
    plan = _Reader(wrong).plan(path, content)
    if wrong:
        raise UsageError("\n".join(f"{one_line(path, limit=200)}: {fault}" for fault in wrong))
    return plan


class _Reader:
    def __init__(self, wrong: list[str]) -> None:
        self.wrong = wrong

    def plan(self, path: str, content: Mapping[str, Any]) -> StudyPlan:
        for key in content.keys() - set(_KEYS):
            self.wrong.append(f"{one_line(key)}: a study has {', '.join(_KEYS)}; settings of all arms stand in base")
        grid = self._grid("grid", content.get("grid"))
        arms = self._arms(content.get("arms"), grid)
        budget = content.get("budget")
        if budget is not None and budget not in get_args(BudgetRule):
            self.wrong.append(f"budget: expected {', '.join(get_args(BudgetRule))}, got {one_line(repr(budget))}")
        return StudyPlan(
            path,
            arms,
            self._configs(content.get("config")),
            self._settings("base", content.get("base")),
            self._seeds(content.get("seeds")),
            budget,
        )

    def _arms(self, given: Any, grid: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        if given is None and len(grid) > 1:
            given = {"": {}}
        if not isinstance(given, Mapping) or not given:
            self.wrong.append("arms: give a mapping from the name of an arm to its settings, or a grid")
            return {}
        arms: dict[str, dict[str, Any]] = {}
        for name, settings in given.items():
            where = f"arms.{one_line(name)}" if name else "grid"
            own = dict(settings) if isinstance(settings, Mapping) else settings
            of_arm = self._grid(f"{where}.grid", own.pop("grid", None) if isinstance(own, dict) else None)
            sets = self._settings(where, own)
            for chosen in itertools.product(grid, of_arm):
                values = {key: value for part in chosen for key, value in part.items()}
                full = " ".join(filter(None, [name, *_labels(values)]))
                if full in arms:
                    self.wrong.append(f"{where}: two arms have the name {one_line(full)}")
                arms[full] = merged(sets, self._settings(where, values))
        return arms

    def _grid(self, where: str, given: Any) -> list[dict[str, Any]]:
        """One mapping of dotted keys for each point of a grid."""
        if given is None:
            return [{}]
        if not isinstance(given, Mapping) or not all(isinstance(values, list) and values for values in given.values()):
            self.wrong.append(f"{where}: expected a list of values for each key, such as `algo.lr: [1e-4, 2e-4]`")
            return [{}]
        return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]

    def _settings(self, where: str, given: Any) -> dict[str, Any]:
        """Settings as groups."""
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self.wrong.append(f"{where}: expected settings such as `algo: dapo`, got {one_line(repr(given))}")
            return {}
        settings: dict[str, Any] = {}
        for key, value in given.items():
            group, dot, name = key.partition(".")
            if group in ("seed_everything", "out", "resume", "config"):
                advice = "config stands beside arms" if group == "config" else "the study sets it for each cell"
                self.wrong.append(f"{where}.{group}: {advice}; leave it out")
                continue
            settings = merged(settings, {group: {name: value}} if dot else {group: value})
        return settings

    def _seeds(self, given: Any) -> list[int] | None:
        if given is None:
            return None
        try:
            seeds = [Seed(seed) for seed in given if isinstance(seed, int) and not isinstance(seed, bool)]
        except (ValueError, TypeError):
            seeds = []
        if not seeds or len(seeds) < len(given) or len(set(seeds)) < len(seeds):
            self.wrong.append(f"seeds: expected different integers >= 0 such as [0, 1, 2], got {one_line(repr(given))}")
            return None
        return [int(seed) for seed in seeds]

    def _configs(self, given: Any) -> list[str]:
        configs = [given] if isinstance(given, str) else [] if given is None else given
        if not isinstance(configs, list) or not all(isinstance(config, str) for config in configs):
            self.wrong.append(f"config: expected a preset or file, or a list of them, got {one_line(repr(given))}")
            return []
        return configs


def merged(settings: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as groups, with others over them. A part given by its name alone is a group with that name."""
    found = dict(settings)
    for group, value in over.items():
        before = found.get(group)
        if isinstance(before, str) and isinstance(value, Mapping):
            before = {"name": before}
        if isinstance(before, Mapping) and isinstance(value, str):
            value = {"name": value}
        found[group] = {**before, **value} if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return found


def _labels(values: Mapping[str, Any]) -> Iterator[str]:
    """What tells a point of a grid from the others: `lr=0.0001`; a part by its name alone."""
    last = [key.rpartition(".")[2] for key in values]
    for key, name in zip(values, last, strict=True):
        value = values[key]
        text = value if isinstance(value, str) else json.dumps(value)
        yield text if "." not in key else f"{name if last.count(name) == 1 else key}={text}"
