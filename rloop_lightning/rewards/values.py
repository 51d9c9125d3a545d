"""What an answer is read as. Plain data; reading.py makes it, compare.py compares it."""

from __future__ import annotations

from dataclasses import dataclass, field

from rloop_lightning.rewards.nodes import Node
from rloop_lightning.rewards.units import Unit


@dataclass(frozen=True)
class Scalar:
    """A number or an expression, with its unit; `percent` tells that a percent sign follows."""

    node: Node
    unit: Unit = ()
    percent: bool = False


@dataclass(frozen=True)
class Group:
    """Several values. Brackets `{}` make a set, `()` a point or an open interval, `:` a ratio, none a bare list.

    `[0,1)` is a group with the brackets `[` and `)`. `joined` tells what joins a bare list: "and", "or", or, for commas
    alone, nothing. It counts where the items are conditions.
    """

    opening: str
    closing: str
    items: tuple[Value, ...]
    joined: str = field(default="", compare=False)


@dataclass(frozen=True)
class Relation:
    """Values with a relation between every two neighbours: an equation, an inequality, a chain of inequalities.

    `name` is the left side of an equation that names its right side, such as `x` in `x = 5`, else empty.
    """

    signs: tuple[str, ...]
    sides: tuple[Value, ...]
    name: str = ""


@dataclass(frozen=True)
class Union:
    """A union of sets; with `without`, the first set less the second."""

    pieces: tuple[Value, ...]
    without: bool = False


@dataclass(frozen=True)
class Choice:
    """The letter of a multiple-choice answer, in upper case, and what was written behind it."""

    letter: str
    lower: bool = False
    content: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Text:
    """Words, in lower case."""

    words: str


@dataclass(frozen=True)
class BaseNumber:
    """An integer written in another base: `1010_2`."""

    value: int
    base: int


Value = Scalar | Group | Relation | Union | Choice | Text | BaseNumber


@dataclass(frozen=True)
class Reading:
    """Everything that an answer can mean.

    Args:
        text: the answer in its one spelling. Equal texts are equal answers, readable or not.
        values: its possible meanings; more than one if it is ambiguous, none if it is unreadable.
        problem: why it is unreadable, else empty.
        products: what words such as `nRT` mean if the other answer is a product of variables.
    """

    text: str
    values: tuple[Value, ...] = ()
    problem: str = ""
    products: tuple[Value, ...] = ()
