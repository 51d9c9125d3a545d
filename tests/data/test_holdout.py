"""What is held out of a training set: by the problems' texts alone, copies together, and told."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from problem_files import write_rows

from rloop_lightning.data.files import ProblemFiles
from rloop_lightning.data.holdout import hold_out
from rloop_lightning.types import Problem


def problems(count: int, start: int = 0) -> list[Problem]:
    return [Problem(f"id-{n}", f"What is {n} + {n}?", str(2 * n)) for n in range(start, start + count)]


def held_out(found: list[Problem], size: int | None = None) -> set[str]:
    return {problem.prompt for problem in hold_out(found, size)[1]}


@pytest.mark.parametrize(
    ("count", "least", "most"),
    [(39, 0, 0), (40, 8, 8), (100, 8, 8), (1_000, 35, 65), (4_000, 160, 240), (20_000, 256, 256)],
)
def test_a_twentieth_is_held_out_between_8_and_256(count: int, least: int, most: int) -> None:
    assert least <= len(held_out(problems(count))) <= most


def test_the_choice_depends_on_texts_alone() -> None:
    found = problems(1_000)
    others = [Problem(f"other-{n}", problem.prompt.upper(), "") for n, problem in enumerate(found)]
    random.Random(1).shuffle(others)
    assert {prompt.upper() for prompt in held_out(found)} == held_out(others)


def test_a_problem_stays_held_out_when_the_set_grows() -> None:
    assert held_out(problems(1_000)) <= held_out(problems(2_000)) <= held_out(problems(4_000))
    assert held_out(problems(1_000), 20) - held_out(problems(2_000)) == set()


def test_copies_of_a_problem_are_never_separated() -> None:
    copies = [Problem(f"copy-{n}", f"  what is {n}+{n}", "") for n in range(200)]
    train, validation = hold_out([*problems(200), *copies], None)
    numbers = [{problem.id.split("-")[1] for problem in found} for found in (train, validation)]
    assert not numbers[0] & numbers[1]
    assert len(validation) == 2 * len(numbers[1]) >= 16
    assert len(hold_out([*problems(200), *copies], 7)[1]) == 8


def test_an_exact_size_is_taken_without_copies() -> None:
    assert [len(held_out(problems(100), size)) for size in (0, 1, 13, 99)] == [0, 1, 13, 99]


def test_a_file_is_split_unless_evaluation_sets_are_given(tmp_path: Path) -> None:
    rows = [{"id": n, "problem": f"{n}?", "answer": n} for n in range(200)]
    train, test = write_rows(tmp_path / "train.jsonl", rows), write_rows(tmp_path / "test.jsonl")
    source = ProblemFiles(str(train))
    validation = source.evaluation()["validation"]
    assert list(source.evaluation()) == ["validation"]
    assert len(source.train()) + len(validation) == 200
    assert not {problem.id for problem in source.train()} & {problem.id for problem in validation}
    assert source.notes() == [f"validation: {len(validation)} problems held out of train (--data.validation_size)"]
    for settings in ({"eval": str(test)}, {"validation_size": 0}):
        whole = ProblemFiles(str(train), **settings)
        assert len(whole.train()) == 200
        assert "validation" not in whole.evaluation()
    both = ProblemFiles(str(train), eval=str(test), validation_size=5)
    assert {name: len(found) for name, found in both.evaluation().items()} == {"test": 3, "validation": 5}


def test_a_small_set_keeps_all_its_problems(tmp_path: Path) -> None:
    source = ProblemFiles(str(write_rows(tmp_path / "train.jsonl")))
    assert (len(source.train()), dict(source.evaluation()), source.notes()) == (3, {}, [])


def test_copies_that_would_take_all_problems_are_an_error(tmp_path: Path) -> None:
    rows = [{"id": n, "problem": "the same", "answer": n} for n in range(9)]
    source = ProblemFiles(str(write_rows(tmp_path / "train.jsonl", rows)), validation_size=2)
    with pytest.raises(ValueError, match=r"--data.validation_size 2: with their copies, these are all problems"):
        source.train()
