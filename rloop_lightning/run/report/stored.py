"""What the pages read of a run: state, settings, metrics, and the records of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rloop_lightning.errors import StateError
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.metrics_csv import PASS_AT_K, Row, Table, read_table
from rloop_lightning.run.settings import recorded_settings
from rloop_lightning.run.state import LoopState, Stage, plan

ReadProblems = Callable[[Collection[str]], Mapping[str, tuple[str, str]]]
"""Gives prompt and gold answers, as text, of problems by id."""

_MOST_ROUNDS = 10_000  # the settings of somebody else may say anything
_NONE = "none"
"""The name of no consolidation in the settings."""
_HELD_BACK = "validation"


@dataclass(frozen=True)
class EvaluatedStage:
    """A policy with the record of its evaluation.

    Args:
        name: its name, such as "round 1 explored".
        record: the record, which exists.
    """

    name: str
    record: Path


@dataclass(frozen=True)
class ReportedRun:
    """A run, as far as it has come.

    Args:
        folder: the run folder.
        state: the state of the run.
        read_problems: gives prompt and gold answers of some training problems by id; None if they are not known.
    """

    folder: RunFolder
    state: LoopState
    read_problems: ReadProblems | None = None

    @property
    def title(self) -> str:
        """The name of the run."""
        return self.folder.out.resolve().name

    @cached_property
    def metrics(self) -> Table:
        """What can be read of metrics.csv."""
        return read_table(self.folder.metrics) if self.folder.metrics.exists() else Table()

    @property
    def rows(self) -> Sequence[Row]:
        """The rows of metrics.csv that can be read."""
        return self.metrics.rows

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the run by group; none if they can't be read."""
        try:
            found = self.state.settings or recorded_settings(self.folder)
        except (yaml.YAMLError, RecursionError):  # a run of version 0 has them in config.yaml alone
            return {}
        return found if isinstance(found, Mapping) else {}

    def setting(self, group: str, name: str, default: Any = None) -> Any:
        """A setting of the run."""
        return self.group(group).get(name, default)

    def group(self, name: str) -> Mapping[str, Any]:
        """The settings of a group, empty if the run has none."""
        values = self.settings.get(name)
        return values if isinstance(values, Mapping) else {}

    @property
    def consolidates(self) -> bool:
        """Whether the rounds end with a consolidation."""
        if self.settings:
            return self.setting("consolidate", "name", _NONE) != _NONE
        return any("consolidated" in name for name in self.state.results)

    @property
    def has_expert_sets(self) -> bool:
        """Whether the consolidations are on expert sets, as far as it is known: they are until one was not."""
        consolidated = [result for name, result in self.state.results.items() if name.endswith("consolidated")]
        return self.consolidates and all("expert/rollouts" in result for result in consolidated)

    @property
    def stages(self) -> list[Stage]:
        """The plan of the run."""
        rounds = self.setting("loop", "rounds")
        known = rounds if isinstance(rounds, int) else self.state.round + 1
        return plan(min(known, _MOST_ROUNDS), consolidates=self.consolidates)

    @property
    def done(self) -> list[Stage]:
        """The stages that are complete."""
        return self.stages[: self.state.stages_done]

    @property
    def explorations(self) -> dict[int, int]:
        """Rollout steps of the explorations that have rows in metrics.csv, by round."""
        steps: dict[int, int] = {}
        for row in self.rows:
            if row["phase"] == "explore":
                steps[row["round"]] = max(steps.get(row["round"], 0), row["step"])
        return dict(sorted(steps.items()))

    @property
    def starts(self) -> dict[int, int]:
        """Rollout steps of the run before each round."""
        starts, place = {}, 0
        for number, steps in self.explorations.items():
            starts[number] = place
            place += steps
        return starts

    @property
    def sets(self) -> list[str]:
        """The evaluated sets that are shown: validation is shown only in a run that is judged by it."""
        names = [match["set"] for metrics in self.state.results.values() for match in _passes(metrics)]
        names = list(dict.fromkeys(names))
        judged = str(self.setting("loop", "select", "")).startswith("pass@") or names == [_HELD_BACK]
        return names if judged else [name for name in names if name != _HELD_BACK]

    def ks(self, name: str) -> list[int]:
        """The values of k that were measured on a set."""
        found = {
            int(match["k"])
            for metrics in self.state.results.values()
            for match in _passes(metrics)
            if match["set"] == name
        }
        return sorted(found)

    @property
    def policies(self) -> list[EvaluatedStage]:
        """The policies that were evaluated between phases and whose records exist, in order."""
        found = []
        for stage in self.done:
            path = self.folder.evaluation(stage)
            if stage.phase == "evaluate" and path.exists():
                found.append(EvaluatedStage(stage.name, path))
        return found

    def policy(self, name: str) -> EvaluatedStage | None:
        """The policy of that name."""
        return next((policy for policy in self.policies if policy.name == name), None)

    @property
    def last_policy(self) -> str:
        """The policy that the run hands over; until then, the last evaluated one; empty if there is none."""
        return self.state.selected or next(reversed(list(self.state.results)), "")


def read_run(path: Path, read_problems: ReadProblems | None = None) -> ReportedRun:
    """Read a run.

    Args:
        path: the run folder.
        read_problems: as in `ReportedRun`.

    Raises:
        ValueError: the folder holds no readable run.
    """
    folder = RunFolder(path)
    try:
        state, _ = folder.newest_state()
    except StateError as error:
        raise ValueError(str(error)) from error
    if state is None:
        raise ValueError(f"{path}: no {folder.state.name} there; give the folder of a run")
    return ReportedRun(folder, state, read_problems)


def _passes(metrics: Mapping[str, float]) -> list[Any]:
    return [match for match in map(PASS_AT_K.fullmatch, metrics) if match]
