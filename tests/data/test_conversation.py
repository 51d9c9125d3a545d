"""Problems that are kept as lists of messages: the last user message is the problem, what is before it its context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from problem_files import write_rows
from shared_data import SHARED

from rloop_lightning.data.files import ProblemFiles
from rloop_lightning.data.render import overlap_count
from rloop_lightning.types import Message, Problem

SYSTEM, USER, ASSISTANT = (
    {"role": "system", "content": "Think."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
)
PARTS = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "3+3?"}]}


def read(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Problem, ...]:
    return tuple(ProblemFiles(str(write_rows(tmp_path / "a.jsonl", rows)), **settings).train())


@pytest.mark.parametrize(
    ("prompt", "problem", "context"),
    [
        ([USER], "1+1?", ()),
        ([SYSTEM, USER], "1+1?", (Message("system", "Think."),)),
        ([{"role": "developer", "content": "Think."}, USER], "1+1?", (Message("system", "Think."),)),
        (
            [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "+1?"}],
            "+1?",
            (Message("system", "Think."), Message("user", "1+1?"), Message("assistant", "2")),
        ),
        ([USER, ASSISTANT], "1+1?", ()),
        ([{"role": "system", "content": ""}, USER], "1+1?", ()),
        ([PARTS], "What is 3+3?", ()),
        ([{"from": "human", "value": "1+1?"}], "1+1?", ()),
        (json.dumps([SYSTEM, USER]), "1+1?", (Message("system", "Think."),)),
        ("[1, 2] is an interval", "[1, 2] is an interval", ()),
        ('[{"x": 1}]', '[{"x": 1}]', ()),
    ],
)
@pytest.mark.parametrize("preset", ["auto", "dapo-math"])
def test_roles_are_read(tmp_path: Path, prompt: Any, problem: str, context: tuple[Message, ...], preset: str) -> None:
    row = {"prompt": prompt, "reward_model": {"ground_truth": "2"}}
    (read_as,) = read(tmp_path, [row], preset=preset)
    assert (read_as.prompt, read_as.context, read_as.answer) == (problem, context, "2")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([SYSTEM], "a.jsonl:1: no message has the role user"),
        ([], "a.jsonl:1: no message has the role user"),
        (["1+1?"], "message 1 must have a role and a content"),
        ([{"role": "tool", "content": "x"}, USER], "message 1 has the role 'tool'; known are system, developer, user"),
        ([{"role": ["user"], "content": "x"}], "message 1 has the role"),
        ([{"role": "user", "content": 3}], "the content of message 1 must be text, got int"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 has a part that is not text .'image'."),
        ([{"role": "user", "content": ""}], "the problem is empty"),
        ([{"role": "system", "content": "\ud800"}, USER], "not valid Unicode"),
    ],
)
def test_a_list_without_a_problem_is_refused_with_its_place(tmp_path: Path, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, [{"prompt": prompt, "answer": "2"}])


def test_a_message_that_is_not_the_users_is_no_problem(tmp_path: Path) -> None:
    rows = [{"prompt": [SYSTEM, {"role": "user", "content": f"{n}?"}], "answer": str(n)} for n in range(3)]
    with pytest.raises(ValueError, match=r"prompt\[0\] is a message with the role system.*--data.problem_field prompt"):
        read(tmp_path, rows, problem_field="prompt[0].content")
    assert [problem.prompt for problem in read(tmp_path, rows, problem_field="prompt[1].content")] == ["0?", "1?", "2?"]


def test_one_text_in_every_row_is_no_problem(tmp_path: Path) -> None:
    rows = [{"problem": "Solve it.", "answer": str(n)} for n in range(3)]
    with pytest.raises(ValueError, match=r"all 3 problems have the same text, 'Solve it.', and different gold answers"):
        read(tmp_path, rows)
    assert len(read(tmp_path, [{**row, "answer": "1"} for row in rows])) == 3


def test_replies_after_the_problem_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": [USER, ASSISTANT], "answer": "2"}, {"prompt": [SYSTEM, USER], "answer": "2"}]
    source = ProblemFiles(str(write_rows(tmp_path / "a.jsonl", rows)))
    assert source.notes() == ["train: replies after the problem left out of 1 conversations"]


def test_earlier_turns_make_another_problem_and_a_system_message_does_not() -> None:
    problem = Problem("p", "And then?", "1", context=(Message("user", "one"), Message("assistant", "2")))
    other = Problem("q", "And then?", "1", context=(Message("user", "two"), Message("assistant", "2")))
    alone = Problem("r", "And then?", "1", context=(Message("system", "S"),))
    assert overlap_count([problem], [other]) == 0
    assert overlap_count([problem], [problem]) == 1
    assert overlap_count([alone], [Problem("s", "and then", "1")]) == 1


def test_the_shared_set_of_verl_has_its_problems() -> None:
    path = SHARED.parent / "cases" / "verl_system.parquet"
    if not path.is_file():
        pytest.skip(f"no {path}")
    for preset in ("dapo-math", "auto"):
        problems = ProblemFiles(str(path), preset=preset).train()
        assert [problem.prompt for problem in problems[:2]] == ["What is 10 + 11?", "What is 11 + 12?"]
        assert problems[0].context == (Message("system", "You are a careful assistant. Think first."),)
