"""Pictures of a page as data: what assets/report/pictures.js draws, and the table that says the same in numbers.

A picture has a title, a caption that states what it shows, and a text alternative. Points are bounded by `MOST_POINTS`
a curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

MOST_POINTS = 250
_TABLE_ROWS = 12

Shape = Literal["line", "faint", "points"]
Cell = float | str | None


@dataclass(frozen=True)
class Series:
    """A curve.

    Args:
        name: its name in the legend.
        colour: index of its colour.
        curves: parts that are not joined, each an array [N, 2] of x and y.
        shape: a line, a faint line behind others (not in the legend), or points that a line joins.
    """

    name: str
    colour: int
    curves: Sequence[np.ndarray]
    shape: Shape = "line"


@dataclass(frozen=True)
class Lines:
    """Curves over a common axis.

    Args:
        id: of the element on the page.
        title: what is shown.
        caption: what it says, in a sentence or two.
        x: label of the x axis.
        y: label of the y axis.
        series: the curves.
        marks: x of vertical rules by label, such as the beginnings of rounds.
        log: whether the y axis is logarithmic.
        share: whether y is a share, shown in percent.
        zero: whether the y axis begins at 0.
    """

    id: str
    title: str
    caption: str
    x: str
    y: str
    series: Sequence[Series]
    marks: Mapping[str, float] = field(default_factory=dict)
    log: bool = False
    share: bool = False
    zero: bool = False

    def data(self) -> dict[str, Any]:
        """What the script draws."""
        return {
            "kind": "lines",
            "x": self.x,
            "y": self.y,
            "log": self.log,
            "share": self.share,
            "zero": self.zero or self.share,
            "marks": [[text, x] for text, x in self.marks.items()],
            "series": [
                {
                    "name": one.name,
                    "colour": one.colour,
                    "shape": one.shape,
                    "curves": [[[_short(x), _short(y)] for x, y in thinned(curve)] for curve in one.curves],
                }
                for one in self.series
            ],
        }

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Name and style classes of the curves that a reader tells apart, by colour and by dashes or symbols."""
        told = [one for one in self.series if one.shape != "faint"]
        return [(one.name, f"{one.shape} k{one.colour % 8} n{place % 4}") for place, one in enumerate(told)]

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """Header and rows: the value of each curve at a few places, at the last known place before or at x."""
        told = [one for one in self.series if one.shape != "faint"]
        points = [np.concatenate(list(one.curves)) if one.curves else np.empty((0, 2)) for one in told]
        places = np.unique(np.concatenate([each[:, 0] for each in points])) if points else np.empty(0)
        if len(places) > _TABLE_ROWS:
            places = places[np.unique(np.linspace(0, len(places) - 1, _TABLE_ROWS).round().astype(int))]
        rows: list[list[Cell]] = [[float(x), *(_at(each, x) for each in points)] for x in places]
        return [self.x, *(one.name for one in told)], rows


@dataclass(frozen=True)
class Heat:
    """A matrix of colours with numbers.

    Args:
        id: of the element on the page.
        title: what is shown.
        caption: what it says.
        x: label of the columns.
        y: label of the rows.
        columns: names of the columns.
        rows: names of the rows.
        values: [rows, columns]; NaN is left empty.
        low: the value of the palest colour.
        high: the value of the strongest colour.
        digits: digits after the point.
        share: whether values are shares, shown in percent.
    """

    id: str
    title: str
    caption: str
    x: str
    y: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: np.ndarray
    low: float = 0.0
    high: float = 1.0
    digits: int = 2
    share: bool = False

    legend: Sequence[tuple[str, str]] = ()

    def data(self) -> dict[str, Any]:
        """What the script draws."""
        return {
            "kind": "heat",
            "x": self.x,
            "y": self.y,
            "columns": list(self.columns),
            "rows": list(self.rows),
            "values": [[_short(value) for value in row] for row in self.values],
            "low": self.low,
            "high": self.high,
            "digits": self.digits,
            "share": self.share,
        }

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """Header and rows: the matrix."""
        rows: list[list[Cell]] = [
            [name, *(_short(value) for value in row)] for name, row in zip(self.rows, self.values, strict=True)
        ]
        return [f"{self.y} \\ {self.x}", *self.columns], rows


@dataclass(frozen=True)
class Bars:
    """Counts by category, in stacked parts.

    Args:
        id: of the element on the page.
        title: what is shown.
        caption: what it says.
        x: label of the categories.
        y: label of the counts.
        categories: their names, in order.
        parts: counts [categories] by name and colour.
    """

    id: str
    title: str
    caption: str
    x: str
    y: str
    categories: Sequence[str]
    parts: Sequence[tuple[str, int, np.ndarray]]

    def data(self) -> dict[str, Any]:
        """What the script draws."""
        return {
            "kind": "bars",
            "x": self.x,
            "y": self.y,
            "categories": list(self.categories),
            "parts": [
                {"name": name, "colour": colour, "values": [_short(value) for value in values]}
                for name, colour, values in self.parts
            ],
        }

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Name and style classes of the parts."""
        return [(name, f"points k{colour % 8} n0") for name, colour, _ in self.parts] if len(self.parts) > 1 else []

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """Header and rows: the counts."""
        rows: list[list[Cell]] = [
            [name, *(_short(values[place]) for _, _, values in self.parts)]
            for place, name in enumerate(self.categories)
        ]
        return [self.x, *(name for name, _, _ in self.parts)], rows


@dataclass(frozen=True)
class Point:
    """A point with its intervals.

    Args:
        name: what is written beside it, and what it is called in the table.
        colour: index of its colour.
        x: its place, low and high.
        y: the same, upwards.
        hollow: whether it is drawn hollow, joined to the next point by a line, and without its name.
    """

    name: str
    colour: int
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    hollow: bool = False


@dataclass(frozen=True)
class Scatter:
    """Points on a plane.

    Args:
        id: of the element on the page.
        title: what is shown.
        caption: what it says.
        x: label of the x axis.
        y: label of the y axis.
        points: the points; those behind come first.
    """

    id: str
    title: str
    caption: str
    x: str
    y: str
    points: Sequence[Point]

    legend: Sequence[tuple[str, str]] = ()

    def data(self) -> dict[str, Any]:
        """What the script draws."""
        return {
            "kind": "scatter",
            "x": self.x,
            "y": self.y,
            "points": [
                {
                    "name": one.name,
                    "colour": one.colour,
                    "x": [_short(value) for value in one.x],
                    "y": [_short(value) for value in one.y],
                    "hollow": one.hollow,
                }
                for one in self.points
            ],
        }

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """Header and rows: the points with their intervals."""
        header = [f"{axis}{end}" for axis in (self.x, self.y) for end in ("", ", low", ", high")]
        rows: list[list[Cell]] = [[one.name, *(_short(value) for value in (*one.x, *one.y))] for one in self.points]
        return ["policy", *header], rows


Picture = Lines | Heat | Bars | Scatter


def thinned(curve: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """At most `most` points of a curve [N, 2], evenly spaced, the first and the last among them."""
    if len(curve) <= most:
        return curve
    return curve[np.unique(np.linspace(0, len(curve) - 1, most).round().astype(int))]


def _at(points: np.ndarray, x: float) -> float | None:
    """The value at the last place up to x, of several there the last; None before the first."""
    before = points[points[:, 0] <= x]
    return _short(before[before[:, 0] == before[:, 0].max()][-1, 1]) if len(before) else None


def _short(value: Any) -> Any:
    """A number with four significant digits, None if it is not finite."""
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 1e9 else float(f"{number:.4g}")
