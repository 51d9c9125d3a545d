"""The rows of metrics.csv as curves over the rollout steps of the whole run.

    Timeline(read_metrics(run / "metrics.csv")).training("rollout/reward_mean")     # a curve of each round

Rows of the phase `explore` contain the training curves, with steps from 1, and evaluations in between. Rows of the
phase `evaluate` contain evaluations between phases: step 0 for the base policy, 1 for the explored policy, 2 for the
consolidated policy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rloop_lightning.run.metrics_csv import PASS_AT_K

Row = Mapping[str, Any]

END = math.inf
"""The step of the explored policy, whatever the number of rollout steps before it."""


@dataclass(frozen=True)
class Curve:
    """One metric's points in one round.

    Args:
        round: the round, from 0.
        step: [S] rollout steps of the round before each point: 0 at its initial policy, `END` at the explored one.
        x: [S] rollout steps counted over the whole run.
        y: [S] the values.
    """

    round: int
    step: np.ndarray
    x: np.ndarray
    y: np.ndarray


def positive(curves: Sequence[Curve]) -> list[Curve]:
    """The curves without the points that a logarithmic axis can't show, such as steps without a gradient."""
    kept = [(curve, curve.y > 0) for curve in curves]
    return [Curve(one.round, one.step[at], one.x[at], one.y[at]) for one, at in kept if at.any()]


class Timeline:
    """The run's rows on one axis: rollout steps counted over all rounds."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.rounds = sorted({row["round"] for row in rows if row["phase"] == "explore"})
        steps = {
            number: max(row["step"] for row in rows if (row["round"], row["phase"]) == (number, "explore"))
            for number in self.rounds
        }
        self.starts: dict[int, int] = {}  # rollout steps before the round
        self.end = 0
        for number in self.rounds:
            self.starts[number] = self.end
            self.end += steps[number]
        self._steps = steps

    def training(self, metric: str) -> list[Curve]:
        """The metric during exploration, one curve per round."""
        return self._curves(metric, {"explore"})

    def evaluations(self, metric: str) -> list[Curve]:
        """The metric of every evaluated policy. Each curve starts at its round's initial policy."""
        return self._curves(metric, {"explore", "evaluate"})

    def _curves(self, metric: str, phases: set[str]) -> list[Curve]:
        points: dict[int, dict[int, tuple[float, float]]] = {}
        for row in self.rows:
            value = row.get(metric)
            if row["phase"] in phases and row["round"] in self.starts and value is not None and math.isfinite(value):
                number, step, x = self._place(row)
                points.setdefault(number, {})[x] = (step, value)
        curves = []
        for number, curve in sorted(points.items()):
            places = sorted(curve)
            steps, values = zip(*(curve[x] for x in places), strict=True)
            curves.append(Curve(number, np.array(steps), np.array(places), np.array(values)))
        return curves

    def _place(self, row: Row) -> tuple[int, float, int]:
        """The round of the row's curve, and the row's step in the round and its position on the axis."""
        number, step = row["round"], row["step"]
        start, end = self.starts[number], self.starts[number] + self._steps[number]
        if row["phase"] == "explore":
            return number, step, start + step
        if step >= 2:  # the consolidated policy is the next round's initial policy
            return number + 1, 0, end
        return (number, END, end) if step else (number, 0, start)

    def eval_metrics(self) -> list[str]:
        """pass@k on the shown set, for the smallest and the largest k."""
        chosen = sorted((match for match in self._passes if match["set"] == self.shown_set), key=lambda m: int(m["k"]))
        return list(dict.fromkeys(match[0] for match in (*chosen[:1], *chosen[-1:])))

    @property
    def shown_set(self) -> str:
        """The test set, or else the first evaluated set; empty without one."""
        sets = [match["set"] for match in self._passes]
        return "test" if "test" in sets else next(iter(sets), "")

    @cached_property
    def _passes(self) -> list[re.Match[str]]:
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [match for name in names if (match := PASS_AT_K.fullmatch(name))]
