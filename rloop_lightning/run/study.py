"""A study: arms that differ in their settings, each run once per seed. A cell is one run of it.

runs/STUDY/
  study.yaml                    command, budget, seeds, and what each arm sets
  study.lock                    held by the process that runs the study
  ARM/settings.yaml             all settings of an arm, for --config
  ARM/seed-0/                   a cell, an ordinary run folder
  ARM/seed-0.sh  ARM/seed-0.log    begins or resumes it; its output
  results.md  results.csv       the comparison (comparison.py)
  comparison.html               the comparison as a page (report/comparison.py)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from rloop_lightning.errors import StateError
from rloop_lightning.run.claim import RunClaim
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.settings import flat, settings_text
from rloop_lightning.run.state import LoopState
from rloop_lightning.system.files import write_text
from rloop_lightning.system.terminal import one_line

BudgetRule = Literal["rollout_steps", "tokens", "free"]

MOST_STEPS = 10
"""With a budget of tokens, an exploration may take this many times its rollout steps."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]+")
_SHOWN = 4  # settings that a message lists


@dataclass(frozen=True, eq=False)
class Arm:
    """One of the settings that a study compares.

    Args:
        name: its name in tables.
        sets: the settings in which it departs from the study's base, as groups.
        settings: all its settings as groups, without the seed and the run folder.
    """

    name: str
    sets: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def folder_name(self) -> str:
        """Its name as the name of a folder; empty if no character of it can be in one."""
        return _UNSAFE.sub("-", self.name).strip("-.")


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a study.

    Args:
        arm: its arm.
        seed: its seed.
        run: its run folder.
    """

    arm: Arm
    seed: int
    run: RunFolder

    def __str__(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def script(self) -> Path:
        """The command that begins the run, or resumes it."""
        return self.run.out.with_name(f"{self.run.out.name}.sh")

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.run.out.with_name(f"{self.run.out.name}.log")

    def state(self) -> LoopState | None:
        """The run's state; None if it has none that can be read."""
        try:
            return self.run.newest_state()[0]
        except StateError:
            return None

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end and handed over a policy."""
        state = self.state()
        return state is not None and state.phase == "done" and bool(state.selected)


@dataclass(frozen=True)
class Study:
    """The arms and seeds of a study, in its folder.

    Args:
        out: the folder.
        arms: the first one is the one that the others are compared with.
        seeds: seeds that every arm runs with.
        budget: what the arms have in equal amounts: rollout steps, generated tokens, or nothing (`free`).
        command: the command line of the study, for readers of its results.
    """

    out: Path
    arms: Sequence[Arm]
    seeds: Sequence[int]
    budget: BudgetRule = "rollout_steps"
    command: str = ""

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells in the order in which they run: every arm with the first seed, then with the next."""
        return [self.cell(arm, seed) for seed in self.seeds for arm in self.arms]

    def cell(self, arm: Arm, seed: int) -> Cell:
        return Cell(arm, seed, RunFolder(self.out / arm.folder_name / f"seed-{seed}"))

    def cells_of(self, arm: Arm) -> list[Cell]:
        """The cells of an arm, by seed."""
        return [cell for cell in self.cells if cell.arm is arm]

    def reference(self, cell: Cell) -> Cell | None:
        """The cell whose tokens are this one's budget: the first arm's with the same seed."""
        return None if self.budget != "tokens" or cell.arm is self.arms[0] else self.cell(self.arms[0], cell.seed)

    def options(self, cell: Cell) -> list[str]:
        """What the run of a cell has besides the settings of its arm. Its `reference` must be complete."""
        reference = self.reference(cell)
        if reference is None:
            return []
        state, loop = reference.state(), cell.arm.settings["loop"]
        assert state is not None
        tokens, steps = max(1, state.budget.tokens // loop["rounds"]), MOST_STEPS * loop["explore_steps"]
        return [f"--loop.explore_tokens={tokens}", f"--loop.explore_steps={steps}"]

    def settings_file(self, arm: Arm) -> Path:
        return self.out / arm.folder_name / "settings.yaml"

    @property
    def lock(self) -> Path:
        return self.out / "study.lock"

    @property
    def results(self) -> Path:
        """The comparison as a table."""
        return self.out / "results.md"

    @property
    def results_csv(self) -> Path:
        """The comparison as CSV."""
        return self.out / "results.csv"

    @property
    def page(self) -> Path:
        """The comparison as a page."""
        return self.out / "comparison.html"

    def place_faults(self) -> list[str]:
        """Why a new study can't have its folder; none if it holds a study already."""
        return [] if self.lock.is_file() else RunClaim(RunFolder(self.out)).faults()

    def fault(self, arm: Arm, defaults: Mapping[str, Any]) -> str:
        """Why an arm can't run in this folder: it has run there with other settings. Empty if it can.

        Args:
            defaults: of all settings, as groups. They stand for settings that did not exist when the arm ran.
        """
        before = _settings_in(self.settings_file(arm))
        begun = [path for path in (self.out / arm.folder_name).glob("seed-*") if RunFolder(path).states]
        if not (before and begun):
            return ""
        then, now = dict(flat(before)), dict(flat(arm.settings))
        then = {**{key: value for key, value in flat(defaults) if key in now}, **then}
        changed = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
        if not changed:
            return ""
        told = ", ".join(f"{key} {now.get(key)} (there: {then.get(key)})" for key in changed[:_SHOWN])
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        return one_line(
            f"--out {self.out}: arm {arm.name} has run there with other settings: {told}{more}; give the arm another "
            "name, or the study another folder with --out",
            limit=1000,
        )

    def write(self) -> None:
        """Write study.yaml and the settings of the arms."""
        for arm in self.arms:
            write_text(self.settings_file(arm), settings_text(arm.settings))
        content = {
            "command": self.command,
            "budget": self.budget,
            "seeds": list(self.seeds),
            "arms": {arm.name: dict(arm.sets) for arm in self.arms},
        }
        write_text(self.out / "study.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _settings_in(path: Path) -> dict[str, Any]:
    """The settings that a study wrote; none if the file is missing or damaged."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    if not isinstance(found, dict):
        return {}
    found.pop("version", None)
    return found
