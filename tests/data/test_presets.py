"""Gold answers as the known problem sets hold them. The rows are made up in the layouts of the published sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from problem_files import write_rows
from shared_data import shared

from rloop_lightning.data.files import ProblemFiles
from rloop_lightning.data.presets import (
    PRESETS,
    after_hashes,
    any_gold,
    bare_dapo_problem,
    gold_text,
    hashes_or_number,
    last_box,
    look_up,
    verbatim,
)

DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is $1+1$?\n\nGive it."
    '\n\nRemember to put your answer on its own line after "Answer:".'
)

LAYOUTS: list[tuple[str, dict[str, Any], tuple[str, str, str]]] = [
    ("gsm8k", {"question": "Q", "answer": "1 + 1 = <<1+1=2>>2\n#### 1,234"}, ("a.jsonl:1", "Q", "1234")),
    ("gsm8k", {"id": "g", "problem": "Q", "answer": "-18"}, ("g", "Q", "-18")),
    (
        "math",
        {"problem": "Q", "level": "Level 5", "type": "Algebra", "solution": r"$\boxed{1}$, so $\boxed{\frac{1}{2}}$."},
        ("a.jsonl:1", "Q", r"\frac{1}{2}"),
    ),
    ("math", {"unique_id": "test/x/1.json", "problem": "Q", "answer": "p - q"}, ("test/x/1.json", "Q", "p - q")),
    (
        "dapo-math",
        {
            "prompt": [{"role": "user", "content": DAPO}],
            "reward_model": {"ground_truth": "34", "style": "rule"},
            "extra_info": {"index": "9a9b"},
        },
        ("9a9b", "What is $1+1$?\n\nGive it.", "34"),
    ),
    (
        "dapo-math",
        {"prompt": "Q", "solution": "34", "extra_info": {"index": "9a9b"}},
        ("9a9b", "Q", "34"),
    ),
    ("aime", {"id": 60, "problem": "Q", "solution": "long", "answer": "204", "year": "2024"}, ("60", "Q", "204")),
    ("aime", {"ID": "2024-II-4", "Problem": "Q", "Solution": "long", "Answer": 33}, ("2024-II-4", "Q", "33")),
    ("aime", {"question": "Q", "answer": "70"}, ("a.jsonl:1", "Q", "70")),
    ("minerva-math", {"question": "Q", "answer": "4.5e33"}, ("a.jsonl:1", "Q", "4.5e33")),
    ("minerva-math", {"idx": 0, "problem": "Q", "solution": r"so \boxed{4.5e33} erg/s"}, ("0", "Q", "4.5e33")),
    ("omni-math", {"problem": "Q", "answer": "\\( 2^{n} \\)", "solution": "s"}, ("a.jsonl:1", "Q", "\\( 2^{n} \\)")),
    ("olympiad-bench", {"id": 1606, "question": "Q", "final_answer": ["$2$"]}, ("1606", "Q", "2")),
    ("olympiad-bench", {"id": 1, "question": "Q", "final_answer": ["$-1$", "$7$"]}, ("1", "Q", "-1, 7")),
    ("auto", {"prompt": "Q", "gold": 3.0}, ("a.jsonl:1", "Q", "3")),
    ("auto", {"question": "Q", "answer": "thus\n#### 5"}, ("a.jsonl:1", "Q", "5")),
    ("auto", {"problem": "Q", "solution": r"thus \boxed{x}"}, ("a.jsonl:1", "Q", "x")),
]


@pytest.mark.parametrize(("preset", "row", "expected"), LAYOUTS)
def test_a_row_of_each_layout(tmp_path: Path, preset: str, row: dict[str, Any], expected: tuple[str, str, str]) -> None:
    (problem,) = ProblemFiles(str(write_rows(tmp_path / "a.jsonl", [row])), preset=preset).train()
    assert (problem.id, problem.prompt, problem.answer) == expected


def test_every_preset_has_a_layout_tested_here() -> None:
    assert {preset for preset, _, _ in LAYOUTS} == set(PRESETS)


@pytest.mark.parametrize(
    ("preset", "row"),
    [
        ("gsm8k", {"question": "Q", "answer": "a solution that lacks its last line"}),
        ("math", {"problem": "Q", "solution": "no box"}),
        ("math", {"problem": "Q", "solution": r"\boxed{never closed"}),
        ("math", {"problem": "Q", "solution": r"\boxed{}"}),
        ("olympiad-bench", {"question": "Q", "final_answer": []}),
        ("olympiad-bench", {"question": "Q", "final_answer": ["1", ""]}),
        ("auto", {"problem": "Q", "answer": True}),
        ("auto", {"problem": "Q", "answer": {"a": 1}}),
        ("auto", {"problem": "Q", "solution": "a proof"}),
    ],
)
def test_a_gold_answer_that_is_not_there_is_not_made_up(tmp_path: Path, preset: str, row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no gold answer can be read for a.jsonl:1;"):
        ProblemFiles(str(write_rows(tmp_path / "a.jsonl", [row])), preset=preset).train()


def test_the_repeated_rows_of_dapo_are_left_out_and_counted_but_not_what_differs(tmp_path: Path) -> None:
    row = {"prompt": "Q", "solution": "34", "extra_info": {"index": "x"}}
    source = ProblemFiles(str(write_rows(tmp_path / "a.jsonl", [row] * 5)), preset="dapo-math")
    assert len(source.train()) == 1
    assert source.notes() == ["train: 4 repeated rows left out"]
    rows = [row, {**row, "solution": "35"}]
    with pytest.raises(ValueError, match="stand for several problems: x;"):
        ProblemFiles(str(write_rows(tmp_path / "b.jsonl", rows)), preset="dapo-math").train()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {
                "prompt": "Solve the following math problem step by step. So.\n\n"
                'Remember to put your answer on its own line after "Answer:".',
                "solution": "34",
                "extra_info": {"index": "x"},
            },
            "a.jsonl:1: the problem is empty",
        ),
        ({"prompt": "Q", "solution": "34", "extra_info": {"index": " "}}, "a.jsonl:1: the id is empty"),
    ],
)
def test_what_is_empty_once_it_is_read_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProblemFiles(str(write_rows(tmp_path / "a.jsonl", [row])), preset="dapo-math").train()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1} then \boxed{ \frac{a}{b} }", r"\frac{a}{b}"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 5$.", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),
        (r"\boxed {3}", "3"),
        (r"\boxedtext{3}", None),
        (r"\boxed{1", None),
        (r"\boxed", None),
        ("", None),
    ],
)
def test_last_box(text: str, expected: str | None) -> None:
    assert last_box(text) == expected


def test_the_other_readers() -> None:
    assert after_hashes("#### 1\n#### $1,000 ") == "$1000"
    assert after_hashes("18") is None
    assert hashes_or_number("1,000") == "1000"
    assert hashes_or_number("about 5") is None
    assert verbatim(" $x$ ") == "x"
    assert verbatim("$x$ and $y$") == "$x$ and $y$"
    assert verbatim(" ") is None
    assert any_gold("plain words") == "plain words"
    assert gold_text(float("nan"), verbatim) is None
    assert gold_text(0.5, verbatim) == "0.5"
    assert bare_dapo_problem("Solve it.") == "Solve it."


def test_a_path_picks_no_characters_and_no_attributes() -> None:
    for path in ("prompt[0]", "prompt[0].content", "prompt.upper", "list[7]", "list.x", "nope"):
        with pytest.raises(KeyError):
            look_up({"prompt": "text", "list": [1]}, path)
    assert look_up({"list": [{"x": [1, 2]}]}, "list[0].x[1]") == 2


@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.jsonl"])
def test_hashes_give_the_shared_golds_of_gsm8k(name: str) -> None:
    rows = [json.loads(line) for line in shared(name).open(encoding="utf-8")]
    assert [row["id"] for row in rows if after_hashes(row["solution"]) != row["answer"]] == []


@pytest.mark.parametrize("name", ["math_train.jsonl", "math500.jsonl"])
def test_last_boxes_give_the_shared_golds_of_math(name: str) -> None:
    rows = [json.loads(line) for line in shared(name).open(encoding="utf-8")]
    rows = [row for row in rows if "answer_note" not in row]  # two solutions whose box is empty
    assert [row["id"] for row in rows if last_box(row["solution"]) != row["answer"].strip()] == []
