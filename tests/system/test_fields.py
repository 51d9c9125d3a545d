"""Restricted numbers as types of settings: what is refused, in which words, from Python and by the parser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from rloop_lightning.system.fields import (
    AboveOne,
    AtLeastOne,
    ClosedUnitInterval,
    LeftOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
    RightOpenUnitInterval,
    check_fields,
    in_words,
    plain,
    wrong_fields,
    wrong_values,
)


@dataclass(frozen=True)
class Settings:
    """Every kind of field."""

    count: PositiveInt = 1
    rest: NonNegativeInt = 0
    rate: PositiveFloat = 0.1
    decay: NonNegativeFloat = 0.0
    share: ClosedUnitInterval = 1.0
    width: OpenUnitInterval = 0.5
    top_p: LeftOpenUnitInterval = 1.0
    beta: RightOpenUnitInterval = 0.0
    cap: AtLeastOne = 1.0
    factor: AboveOne = 2.0
    limit: PositiveFloat | None = None
    k: tuple[PositiveInt, ...] = (1,)
    weights: dict[str, NonNegativeFloat] | None = None
    kind: Literal["a", "b"] = "a"
    text: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "--part")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 0, "an integer > 0"),
        ("count", 1.0, "an integer > 0"),
        ("count", True, "an integer > 0"),
        ("count", "3", "an integer > 0"),
        ("rest", -1, "an integer >= 0"),
        ("rate", 0, "a number > 0"),
        ("rate", float("inf"), "a number > 0"),
        ("rate", float("nan"), "a number > 0"),
        ("decay", -0.1, "a number >= 0"),
        ("share", 1.1, "a number >= 0 and <= 1"),
        ("width", 1, "a number > 0 and < 1"),
        ("top_p", 0.0, "a number > 0 and <= 1"),
        ("beta", 1.0, "a number >= 0 and < 1"),
        ("cap", 0.9, "a number >= 1"),
        ("factor", 1.0, "a number > 1"),
        ("limit", 0.0, "a number > 0 or null"),
        ("k", (1, 0), "a list, each an integer > 0"),
        ("k", 1, "a list, each an integer > 0"),
        ("weights", {"x": -1.0}, "a mapping, each value a number >= 0 or null"),
        ("kind", "c", "a or b"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match="expected") as raised:
        Settings(**{name: value})
    assert str(raised.value) == f"--part.{name}: expected {expected}, got {value!r}"


def test_all_wrong_values_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="expected") as raised:
        Settings(count=0, share=2, beta=1)
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == [
        "--part.count",
        "--part.share",
        "--part.beta",
    ]


def test_numbers_of_other_types_are_numbers() -> None:
    Settings(count=np.int64(3), rate=1, share=0, limit=np.float32(2), k=[1, 2], weights={"x": 0})  # type: ignore[arg-type] # as one writes it


class Base:
    def __init__(self, *, size: PositiveInt = 1) -> None:
        self.size = size
        check_fields(self, "--part")


class Inherits(Base):
    def __init__(self, *, rate: PositiveFloat = 1.0, unkept: PositiveInt = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate


def test_arguments_of_base_classes_are_checked_and_those_that_are_not_kept_are_not() -> None:
    with pytest.raises(ValueError, match=r"--part\.size: expected an integer > 0, got 0"):
        Inherits(size=0)
    assert wrong_fields(Inherits(rate=-1.0, unkept=0), "--part") == ["--part.rate: expected a number > 0, got -1.0"]


def test_arguments_are_checked_without_an_object() -> None:
    given = {"rate": 0.5, "unkept": 0, "size": -1, "unknown": None}
    assert wrong_values(Inherits, given, "--part") == [
        "--part.size: expected an integer > 0, got -1",
        "--part.unkept: expected an integer > 0, got 0",
    ]


class Loosens(Base):
    def __init__(self, *, size: int = 1) -> None:
        super().__init__(size=size)


def test_a_subclass_that_says_less_of_an_argument_is_held_to_what_its_base_says() -> None:
    with pytest.raises(ValueError, match=r"--part\.size: expected an integer > 0, got -1"):
        Loosens(size=-1)


def test_the_parser_refuses_what_a_constructor_refuses_and_gives_plain_numbers() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Settings, "part")
    given = parser.parse_args(["--part.count=3", "--part.k=[2,3]", "--part.limit=0.5"]).part
    assert (type(plain(given.count)), type(plain(given.limit))) == (int, float)
    assert {type(one) for one in plain(given.k)} == {int}
    assert (given.count, given.k, given.limit) == (3, (2, 3), 0.5)
    for flag in ("count=0", "rest=-1", "share=1.1", "top_p=0", "beta=1", "k=[0]", "limit=-1"):
        with pytest.raises(Exception, match="part." + flag.partition("=")[0]):
            parser.parse_args([f"--part.{flag}"])


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, "an integer"),
        (float | None, "a finite number or null"),
        (bool, "true or false"),
        (list[str], "a list, each text"),
        (Literal["x"], "x"),
        (PositiveInt, "an integer > 0"),
    ],
)
def test_a_type_in_words(hint: Any, expected: str) -> None:
    assert in_words(hint) == expected
