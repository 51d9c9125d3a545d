"""Gold answers in the values of fields: numbers, lists, and what can't be one."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from problem_files import write_rows
from shared_data import SHARED

from rloop_lightning.data.files import ProblemFiles
from rloop_lightning.data.golds import read_golds
from rloop_lightning.data.presets import after_hashes, verbatim
from rloop_lightning.rewards.math import MathReward

CASES = SHARED.parent / "cases"


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("#### (1, 2)", "(1, 2)"),
        ("#### 1, 2", "1, 2"),
        ("#### 1,2", "1,2"),
        ("#### [0,5)", "[0,5)"),
        ("#### (1,234)", "(1,234)"),
        ("#### {1,000}", "{1,000}"),
        ("#### 1,234", "1234"),
        ("#### -1,234,567.5", "-1234567.5"),
        ("#### $70,000", "$70000"),
        ("#### 70,000 dollars", "70000 dollars"),
        ("#### 1,234, 5", "1,234, 5"),
        ("#### 12,34", "12,34"),
        ("#### 1,2345", "1,2345"),
        ("#### 110\nThe answer is: 110", "110"),
        ("####\n18.", "18."),
        ("#### ", None),
    ],
)
def test_only_separators_of_thousands_are_taken_out(text: str, gold: str | None) -> None:
    assert after_hashes(text) == gold


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        (5, "5"),
        (5.0, "5"),
        (-0.5, "-0.5"),
        (1e-07, "1e-07"),
        (2.5e22, "2.5e+22"),
        (10**30, "1" + "0" * 30),
        (Decimal("1.50"), "1.50"),
        (Decimal("2.00"), "2"),
        (Decimal("1E-9"), "1E-9"),
        (Decimal("1E+9"), "1000000000"),
        (0, "0"),
    ],
)
def test_numbers_keep_their_value(value: Any, gold: str) -> None:
    assert read_golds(value, verbatim, None).texts == (gold,)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (True, "the boolean true"),
        (float("nan"), "the number nan"),
        (float("inf"), "the number inf"),
        (Decimal("Infinity"), "the number Infinity"),
        (Decimal("1E+99999999"), "the number 1E+99999999"),
        ({"a": 1}, "a struct"),
        ([], "an empty list"),
        ([["1"], ["2"]], "a list in a list"),
        ([{"a": 1}], "a struct in a list"),
        (["1", ""], "item 2 of the list, a text without an answer"),
        (["1", False], "item 2 of the list, the boolean false"),
        (["1", "2"], "a list of 2"),
        pytest.param(10**5000, "an integer of more than 4,000 digits", id="long"),
    ],
)
def test_what_is_no_answer_is_named(value: Any, fault: str) -> None:
    golds = read_golds(value, verbatim, None)
    assert (golds.texts, golds.fault) == ((), fault)


def test_a_list_is_parts_or_alternatives() -> None:
    assert read_golds(["$1$", "2"], verbatim, "alternatives").texts == ("1", "2")
    assert read_golds(["$1$", "2"], verbatim, "parts").texts == ("1, 2",)
    assert read_golds(["(1,2)", "3"], verbatim, "parts").texts == ("(1,2); 3",)
    assert read_golds(["2", "$2$"], verbatim, None).texts == ("2",)  # one answer


def test_the_user_says_what_a_list_is(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "a.jsonl", [{"id": "r", "problem": "A root of x^2=4?", "answer": ["2", "-2"]}]))
    with pytest.raises(ValueError, match=r"no gold answer can be read for r;") as caught:
        ProblemFiles(path).train()
    assert "unreadable gold answers: r has a list of 2" in str(caught.value)
    assert "r: set --data.answer_lists alternatives if each answer of a list is right, or parts if" in str(caught.value)
    reward = MathReward(workers=1)
    for lists, right in (("alternatives", [1.0, 1.0, 0.0]), ("parts", [0.0, 0.0, 1.0])):
        (problem,) = ProblemFiles(path, answer_lists=lists).train()
        assert reward.unusable([problem]) == {}
        assert reward.rewards([problem] * 3, [r"\boxed{2}", r"\boxed{-2}", r"\boxed{-2, 2}"]) == right
    reward.close()


def test_a_struct_that_is_kept_as_json_text(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a?", "reward_model": '{"ground_truth": "7", "style": "rule"}'},
        {"prompt": "b?", "reward_model": '{"ground_truth": 1e-05}'},
    ]
    problems = ProblemFiles(str(write_rows(tmp_path / "a.jsonl", rows)), preset="dapo-math").train()
    assert [problem.answer for problem in problems] == ["7", "1e-05"]
    for text in ('{"ground_truth"', "[" * 5000, "{}"):
        row = {"prompt": "a?", "reward_model": text}
        with pytest.raises(ValueError, match=r"without a field 'reward_model.ground_truth'"):
            ProblemFiles(str(write_rows(tmp_path / "b.jsonl", [row])), preset="dapo-math").train()


RIGHT = {
    "golds_behind_hashes.jsonl": ["(1,2)", "2, 1", "[0,5)", "1234", "-3", "110", "18", "18"],
    "golds_numbers.jsonl": ["5", "5", r"\frac{1}{10}", "10^{-7}", r"2.5\times10^{22}", "-3", "10^{30}", "0"],
    "golds_decimal.parquet": ["1.5", "2", "-3.25", "4"],
    "golds_in_words.jsonl": ["5", "18", r"\pm 5", "5"],
}
WRONG = {
    "golds_behind_hashes.jsonl": ["3", "2", "[0,5]", "234", "3", "100", "-18", "1.8"],
    "golds_numbers.jsonl": ["6", "0.5", "0.01", "e-7", "25", "3", "10^{29}", "1"],
    "golds_decimal.parquet": ["1.51", "-2", "3.25", "40"],
    "golds_in_words.jsonl": ["6", "81", "5", "6"],
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_shared_golds_accept_their_answers_and_no_others(name: str) -> None:
    if not (CASES / name).is_file():
        pytest.skip(f"no {CASES / name}")
    problems = ProblemFiles(str(CASES / name)).train()
    reward = MathReward(workers=1)
    for answers, verdict in ((RIGHT[name], 1.0), (WRONG[name], 0.0)):
        assert reward.rewards(problems, [rf"\boxed{{{answer}}}" for answer in answers]) == [verdict] * len(problems)
    reward.close()
