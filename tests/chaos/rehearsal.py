"""Plays scenarios by name and number, each drawn from one seed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from random import Random

from chaos.reference import Reference
from chaos.scenarios import SCENARIOS, Lost, Result


class Rehearsal:
    """Scenarios in one folder, compared with runs that are made once.

    Args:
        folder: where runs are made; the folder of a run without a loss is removed.
        seed: with a scenario's name and number, it decides what is injected.
    """

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder = folder
        self.seed = seed

    def play(self, scenario: str, number: int) -> Result:
        """Play a scenario.

        Raises:
            Lost: names seed, scenario, number, what was injected and what was said.
        """
        folder = self.folder / f"{scenario.replace(' ', '-')}-{number}"
        reference = self._reference(scenario)
        try:
            result = SCENARIOS[scenario](reference, Random(f"{self.seed} {scenario} {number}"), folder)
        except Lost as lost:
            raise Lost(f"RLOOP_CHAOS_SEED={self.seed}, {scenario} {number}: {lost}", lost.result) from None
        shutil.rmtree(folder)
        return result

    def make_references(self, scenarios: Iterable[str]) -> None:
        """Make the runs that these scenarios are compared with, while nothing else runs: their time is measured."""
        for scenario in scenarios:
            self._reference(scenario)

    def _reference(self, scenario: str) -> Reference:
        return self.with_workers if scenario == "struck workers" else self.plain

    @cached_property
    def plain(self) -> Reference:
        return Reference.made(self.folder / "uninterrupted")

    @cached_property
    def with_workers(self) -> Reference:
        return Reference.made(
            self.folder / "uninterrupted-with-workers",
            reward={"name": "math", "time_limit_s": 1.0},
            loop={"rounds": 1, "explore_steps": 3, "checkpoint_every_n_steps": 3},
            capture={"every_n_steps": 0},
            eval={"every_n_steps": 0, "sets_inside": []},
        )
