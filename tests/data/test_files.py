"""Problems from files of every format, and what is said of files in which something is wrong."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from problem_files import ROWS, write_rows
from shared_data import shared

from rloop_lightning.data.files import ProblemFiles

EXPECTED = [(row["id"], row["problem"], row["answer"]) for row in ROWS]


def triples(problems: Any) -> list[tuple[str, str, str]]:
    return [(problem.id, problem.prompt, problem.answer) for problem in problems]


def refusal(path: Path | str, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the callers look at the message
        ProblemFiles(str(path), **settings).train()
    return str(caught.value)


def jsonl(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_long_cell_is_read_and_the_limit_of_other_readers_stays(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("problem,answer\n" + "1+" * limit + "1,2\n")
    (problem,) = ProblemFiles(str(tmp_path / "a.csv")).train()
    length = len(problem.prompt)
    assert length > limit
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_problems(tmp_path: Path, suffix: str) -> None:
    assert triples(ProblemFiles(str(write_rows(tmp_path / f"train.{suffix}"))).train()) == EXPECTED


def test_a_folder_is_all_its_problem_files_by_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "2.csv", ROWS[1:])
    write_rows(tmp_path / "1.jsonl", ROWS[:1])
    (tmp_path / "README.md").write_text("not a problem")
    assert triples(ProblemFiles(str(tmp_path)).train()) == EXPECTED


def test_a_byte_order_mark_crlf_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    write_rows(tmp_path / "plain.jsonl")
    lines = (tmp_path / "plain.jsonl").read_bytes().splitlines()
    path = jsonl(tmp_path, b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines) + b"\r\n  \r\n")
    assert triples(ProblemFiles(str(path)).train()) == EXPECTED
    cells = write_rows(tmp_path / "a.csv").read_bytes()
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + cells)
    assert triples(ProblemFiles(str(tmp_path / "a.csv")).train()) == EXPECTED


def test_rows_without_ids_are_named_by_their_place(tmp_path: Path) -> None:
    rows = [{"problem": f"{n}?", "answer": n} for n in range(3)]
    assert [p.id for p in ProblemFiles(str(write_rows(tmp_path / "a.jsonl", rows))).train()] == [
        "a.jsonl:1",
        "a.jsonl:2",
        "a.jsonl:3",
    ]
    assert ProblemFiles(str(write_rows(tmp_path / "a.parquet", rows))).train()[2].id == "a.parquet[2]"


def test_ids_of_pandas_are_integers_and_the_missing_ones_are_missing(tmp_path: Path) -> None:
    table = pa.table(
        {"id": [1.0, float("nan"), None], "problem": ["1 + 1", "1 + 2", "1 + 3"], "answer": ["2", "3", "4"]}
    )
    pq.write_table(table, tmp_path / "train.parquet")
    assert [id for id, _, _ in triples(ProblemFiles(str(tmp_path / "train.parquet")).train())] == [
        "1",
        "train.parquet[1]",
        "train.parquet[2]",
    ]
    assert "2 rows without a field 'id' (--data.id_field): train.parquet[1], train.parquet[2]" in refusal(
        tmp_path / "train.parquet", id_field="id"
    )


@pytest.mark.parametrize("id", ["1.5", "1e999", "true", "[1]"])
def test_other_values_are_no_ids(id: str, tmp_path: Path) -> None:
    rows = [f'{{"id": {one}, "problem": "1 + {place}", "answer": "2"}}' for place, one in enumerate(["0", id])]
    path = jsonl(tmp_path, "\n".join(rows) + "\n")
    assert "train.jsonl:2: the id must be text or an integer" in refusal(path)


def test_fields_of_the_users_own_nested_ones_included(tmp_path: Path) -> None:
    rows = [{"key": 7, "chat": [{"text": "1+1?"}], "gold": {"value": 2}, "level": 3, "a.b": "dotted"}]
    (problem,) = ProblemFiles(
        str(write_rows(tmp_path / "a.jsonl", rows)),
        problem_field="chat[0].text",
        answer_field="gold.value",
        id_field="key",
        metadata_fields=("level", "a.b"),
    ).train()
    assert (problem.id, problem.prompt, problem.answer) == ("7", "1+1?", "2")
    assert problem.metadata == {"level": 3, "a.b": "dotted"}


def test_every_fault_of_all_sets_is_named_at_once_with_its_place(tmp_path: Path) -> None:
    train = jsonl(
        tmp_path,
        '{"id": 1, "problem": "fine", "answer": "1"}\n'
        '{"id": 2, "problem": "cut\n'
        '{"id": 3, "problem": 5, "answer": "1"}\n'
        '{"id": 4, "question_text": "1+1?", "answer": "1"}\n'
        '{"id": 1, "problem": "again", "answer": "1"}\n'
        '{"id": 6, "problem": "no gold", "answer": ""}\n'
        "[1, 2]\n"
        '{"id": 8, "problem": "\\ud800", "answer": "1"}\n'
        '{"id": 9, "problem": "  ", "answer": "1"}\n'
        '{"id": [], "problem": "what id", "answer": "1"}\n',
    )
    test = tmp_path / "test.jsonl"
    test.write_text("")
    message = refusal(train, eval=str(test))
    for expected in (
        "train.jsonl:2: not valid JSON",
        "train.jsonl:3: the problem must be text, got int",
        "1 row without a field 'problem' or 'question' or 'prompt' or 'Problem' (--data.problem_field): train.jsonl:4;",
        "these stand for several problems: 1;",
        "no gold answer can be read for 6;",
        "train.jsonl:7: expected an object, got list",
        "train.jsonl:8: the problem is not valid Unicode",
        "train.jsonl:9: the problem is empty",
        "1 more rows that can't be read",
        f"--data.eval test: {test}: the set is empty",
    ):
        assert expected in message
    assert "fields of the first row are id, problem, answer" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"problem": "\xff"}\n', "train.jsonl:1: not UTF-8: byte 0xff at column 14"),
        (b"\n\n{\n", "train.jsonl:3: not valid JSON"),
        ("{}".encode("utf-16"), "train.jsonl:1: UTF-16, save the file as UTF-8"),
        (b"[" * 100_000, "train.jsonl:1: not readable as JSON"),
        (b'{"problem": ' + b"9" * 5000 + b"}", "train.jsonl:1: not readable as JSON"),
        (b"", "the set is empty"),
    ],
    ids=["encoding", "line", "utf-16", "depth", "digits", "empty"],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    assert expected in refusal(jsonl(tmp_path, content))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", b'[{"problem": "x"},\n oops]', "a.json:2: not valid JSON"),
        ("a.json", b'{"a": 1}\n{"b": 2}', "name it .jsonl"),
        ("a.json", b'"text"', "expected a list of objects"),
        ("a.csv", b"problem,answer\n1,2\n1,2,3\n", "a.csv:3: 3 cells, the header has 2"),
        ("a.csv", b"problem,answer,answer\n1,2,3\n", "a.csv:1: the header has the column 'answer' more than once"),
        ("a.csv", b'problem,answer\n"1,2\n', "a.csv:2: not valid CSV"),
        ("a.csv", b"problem,answer\n\xff,2\n", "not UTF-8"),
        ("a.csv", b"problem,answer\n1\n", "without a field 'answer'"),
        ("a.parquet", b"PAR1 no", "not valid Parquet"),
    ],
)
def test_other_formats_name_what_is_wrong_too(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in refusal(tmp_path / name)


def test_a_set_that_can_not_be_there_is_refused_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    settings = {"preset": "gsm", "template": "no place", "max_prompt_tokens": 0, "validation_size": -1}
    with pytest.raises(ValueError, match="no such file") as caught:
        ProblemFiles(str(tmp_path / "nope.jsonl"), eval=[str(tmp_path / "a.txt"), str(tmp_path / "empty")], **settings)
    for expected in (
        f"--data: no such file or folder: {tmp_path / 'nope.jsonl'}",
        "--data.eval a: ",
        "can't tell the format from the name",
        "holds no file that ends in .jsonl",
        "--data.preset 'gsm' is not known; did you mean gsm8k?",
        "--data.template must hold {problem} once",
        "--data.max_prompt_tokens: expected an integer > 0 or null, got 0",
        "--data.validation_size: expected an integer >= 0 or null, got -1",
    ):
        assert expected in str(caught.value)


def test_unreadable_golds_are_left_out_and_counted_on_the_users_word(tmp_path: Path) -> None:
    rows = [*ROWS, {"id": "d", "problem": "?", "answer": " "}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    assert "no gold answer can be read for d;" in refusal(path)
    source = ProblemFiles(str(path), skip_unreadable=True)
    assert triples(source.train()) == EXPECTED
    assert source.notes() == ["train: 1 problems left out, no gold answer can be read"]
    assert "the set is empty" in refusal(write_rows(tmp_path / "b.jsonl", rows[3:]), skip_unreadable=True)


def test_evaluation_sets_one_several_or_named(tmp_path: Path) -> None:
    path, other = write_rows(tmp_path / "a.jsonl"), write_rows(tmp_path / "b.csv", ROWS[:2])
    assert list(ProblemFiles(str(path), eval=str(other)).evaluation()) == ["b"]
    sets = ProblemFiles(str(path), eval=[str(other), str(path)]).evaluation()
    assert {name: len(problems) for name, problems in sets.items()} == {"b": 2, "a": 3}
    assert triples(ProblemFiles(str(path), eval={"held": str(other)}).evaluation()["held"]) == EXPECTED[:2]
    with pytest.raises(ValueError, match="two sets would be named b"):
        ProblemFiles(str(path), eval=[str(other), str(other)])
    with pytest.raises(ValueError, match="the name train is that of the training set"):
        ProblemFiles(str(path), eval={"train": str(other)})


def test_an_evaluation_set_may_have_a_layout_of_its_own(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "a.jsonl", [{"text": "1?", "gold": "1"}])
    test = write_rows(tmp_path / "b.jsonl", [{"question": "2?", "answer": "so\n#### 2"}])
    fields = {"problem_field": "text", "answer_field": "gold"}
    source = ProblemFiles(str(train), eval={"test": str(test)}, eval_presets={"test": "gsm8k"}, **fields)
    assert source.evaluation()["test"][0].answer == "2"
    assert "--data.eval test" in refusal(train, eval={"test": str(test)}, **fields)
    with pytest.raises(ValueError, match=r"--data.eval has no set 'tset', it has test"):
        ProblemFiles(str(train), eval={"test": str(test)}, eval_presets={"tset": "gsm8k"})


def test_the_validation_set_is_held_out_and_the_same_in_any_order(tmp_path: Path) -> None:
    rows = [{"id": n, "problem": f"{n}?", "answer": n} for n in range(50)]
    first = ProblemFiles(str(write_rows(tmp_path / "a.jsonl", rows)), validation_size=10)
    again = ProblemFiles(str(write_rows(tmp_path / "b.jsonl", rows[::-1])), validation_size=10)
    held_out = {problem.id for problem in first.evaluation()["validation"]}
    assert len(held_out) == 10
    assert held_out == {problem.id for problem in again.evaluation()["validation"]}
    assert {problem.id for problem in first.train()} == {str(n) for n in range(50)} - held_out
    assert "--data.validation_size 3 must be less than the 3 problems" in refusal(
        write_rows(tmp_path / "c.jsonl"), validation_size=3
    )


def test_hostile_ids_and_field_names_are_escaped_in_messages(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"id": "\\u001b[2J", "problem": "p", "answer": ""}\n{"\\u001b]0;x": 1}\n')
    message = refusal(path)
    assert "\x1b" not in message
    assert "\\x1b[2J" in message


@pytest.mark.parametrize(
    ("name", "preset", "count", "first"),
    [
        ("gsm8k_train.jsonl", "gsm8k", 7473, "72"),
        ("gsm8k_test.jsonl", "auto", 1319, "18"),
        ("math_train.jsonl", "math", 7500, "0"),
        ("math500.jsonl", "math", 500, r"\left( 3, \frac{\pi}{2} \right)"),
    ],
)
def test_the_shared_sets_are_read_whole(name: str, preset: str, count: int, first: str) -> None:
    problems = ProblemFiles(str(shared(name)), preset=preset, validation_size=0).train()
    assert (len(problems), problems[0].answer) == (count, first)


def test_the_two_empty_boxes_of_math_are_named() -> None:
    message = refusal(shared("math_train.jsonl"), preset="math", answer_field="solution")
    assert "no gold answer can be read for math_train_5341, math_train_5343;" in message


def test_the_same_row_twice_is_an_error_too(tmp_path: Path) -> None:
    assert "stand for several problems: a;" in refusal(write_rows(tmp_path / "a.jsonl", [*ROWS, ROWS[0]]))


def test_a_parquet_file_with_a_map_is_read(tmp_path: Path) -> None:
    """A column that the problems don't use."""
    kinds = {"words": pa.map_(pa.string(), pa.string()), "counts": pa.map_(pa.string(), pa.int64())}
    values = {"words": [[("a", "b")], []], "counts": [[("a", 1), ("b", 2)], None]}
    columns = {name: pa.array(rows, type=kinds[name]) for name, rows in values.items()}
    table = pa.table({"problem": ["1+1?", "1+2?"], "answer": ["2", "3"], **columns})
    pq.write_table(table, tmp_path / "maps.parquet")
    problems = ProblemFiles(str(tmp_path / "maps.parquet"), validation_size=0).train()
    assert [problem.answer for problem in problems] == ["2", "3"]
