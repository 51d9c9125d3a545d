"""What the parser refuses of a single field, a class that is constructed from Python refuses too."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from rloop_lightning.cli.fit import FIXED, RLoopCLI
from rloop_lightning.cli.registry import REGISTRIES, find_class
from rloop_lightning.data.files import ProblemFiles
from rloop_lightning.rewards.weighted import LengthPenalty

GROUPS = {"engine": "engines", "data": "data", "reward": "rewards"}


def classes() -> Iterator[tuple[str, type]]:
    yield from FIXED.items()
    for group, registry in GROUPS.items():
        for name in REGISTRIES[registry]:
            yield group, find_class(registry, name, object)
    yield "reward", LengthPenalty


def restricted_numbers() -> Iterator[Any]:
    """Group, class and argument of every field whose type is an own kind of int or float."""
    for group, cls in classes():
        hints = {name: hint for base in reversed(cls.__mro__) for name, hint in get_type_hints(base.__init__).items()}
        for name, hint in hints.items():
            kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]  # null may be allowed
            numbers = [isinstance(kind, type) and issubclass(kind, int | float) for kind in kinds]
            if numbers and all(numbers) and not {int, float, bool} & set(kinds):
                yield pytest.param(group, cls, name, id=f"{cls.__name__}.{name}")


@pytest.mark.parametrize(("group", "cls", "name"), list(restricted_numbers()))
def test_a_wrong_number_is_refused_from_python(group: str, cls: type, name: str) -> None:
    needed = {
        parameter.name: 1 if cls is LengthPenalty else "nowhere/none.jsonl"
        for parameter in inspect.signature(cls).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }
    with pytest.raises(ValueError, match=rf"--{group}\.{name}: expected .*, got -1"):
        cls(**{**needed, name: -1})


def test_the_fields_above_are_all_there() -> None:
    names = {parameter.id for parameter in restricted_numbers()}
    assert len(names) > 25
    assert {"LoopConfig.rounds", f"{ProblemFiles.__name__}.validation_size", "Countdown.train_size"} <= names


def test_a_run_is_made_of_plain_numbers() -> None:
    """A checkpoint holds some, and is read with `weights_only`, which knows no types but Python's and torch's."""
    parts = RLoopCLI(["--loop.rounds=2", "--engine.top_p=0.5", "--eval.k=[1,2]", "--gradient.warn_above=3"]).parts
    floats = [parts.engine.top_p, parts.gradient.warn_above, parts.algorithm.lr]
    numbers = [parts.loop.rounds, *parts.evaluation.k, *floats]
    assert [type(number) for number in numbers] == [int, int, int, float, float, float]
