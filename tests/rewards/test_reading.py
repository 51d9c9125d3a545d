"""How answers are found, spelled, read and compared, and the verifier as a function."""

import re

import pytest
from answer_cases import CASES
from answer_expressions import EXPRESSIONS
from answer_places import PLACES
from answer_responses import RESPONSES
from answer_structures import STRUCTURES
from answer_units import UNITS
from shared_data import shared_rows

from rloop_lightning.rewards import check, equivalence, read_golds
from rloop_lightning.rewards.extraction import extract
from rloop_lightning.rewards.numbers import equal_numbers
from rloop_lightning.rewards.reading import read
from rloop_lightning.rewards.spelling import RULES, normalise


def is_right(gold, response, mode="auto"):
    answer = extract(response, mode)
    return answer is not None and equivalence.check((gold, answer)) == "right"


BOXED = {
    kind: [(gold, rf"\boxed{{{one}}}", right) for gold, one, right in rows]
    for kind, rows in (EXPRESSIONS | STRUCTURES | UNITS).items()
}
TABLES = CASES | RESPONSES | PLACES | BOXED


@pytest.mark.parametrize("kind", TABLES)
def test_siblings_of_each_kind(kind):
    assert [case for case in TABLES[kind] if is_right(case[0], case[1]) != case[2]] == []


def test_shared_answers_in_every_mode_that_applies():
    wrong = []
    for row in shared_rows("../cases/answers.jsonl"):
        modes = ["auto"]
        modes += ["box"] if re.search(r"boxed\s*\{|fbox", row["response"]) else []
        modes += ["last"] if "box" not in row["response"] and "<" not in row["response"] else []
        wrong += [
            (mode, row["id"]) for mode in modes if is_right(row["gold"], row["response"], mode) != row["expected"]
        ]
    assert wrong == []


def test_every_rule_of_spelling_changes_its_case():
    assert [case for pattern, _, case in RULES if not pattern.search(case)] == []
    assert len({case for _, _, case in RULES}) == len(RULES)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("\u2212\u00bd", "- 1/2"),
        ("\uff12\u00d7\uff13", r"2\times 3"),
        ("x²", "x^{2}"),
        (r"\left(1,\,2\right]", "(1, 2]"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"{\color{red}5}", "{5}"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
)
def test_one_spelling(text, spelled):
    assert normalise(text) == spelled


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("0.333333", "1/3", True),
        ("0.33333", "1/3", False),  # five digits
        ("0.333334", "1/3", False),  # a unit of its last digit away
        ("3.14159", r"\pi", True),
        ("0.0001234", "0.0001238", False),
        ("123456.78", "123456.79", False),
        ("0.1", "0.10000000149011612", True),  # single precision
        ("2.5e22", "24999999999999997902848", True),  # double precision
        ("2.5e22", "24999999999999997902849", False),
        ("1000000", "1000000.4", False),
        ("1.0e6", "1000000", True),
        ("5e-324", "0", False),
    ],
)
def test_relative_tolerance(first, second, equal):
    for gold, answer in ((first, second), (second, first)):
        assert is_right(gold, rf"\boxed{{{answer}}}") is equal


def test_numbers_by_their_literals():
    half = read("0.5").values[0].node
    assert equal_numbers(half.value, half.literal, half.value, None)
    assert not equal_numbers(half.value, half.literal, half.value + 1, None)


def test_a_row_of_boxes_is_one_answer_and_a_corrected_box_is_not():
    assert extract(r"\boxed{1} and \boxed{2}", "box") == "1 , 2"
    assert extract(r"\boxed{1}. Wait, once more: \boxed{2}", "box") == "2"
    assert extract("1. \\boxed{1}\n2. \\boxed{2}", "box") == "2"
    assert extract(r"\boxed{7} and \boxed{7", "box") is None  # the last one isn't closed
    assert extract("<think>\\boxed{3}", "box") is None
    assert extract("\\boxed{3}</think>5", "auto") == "5"


def test_the_gold_decides_what_is_ambiguous():
    assert is_right("3.5", r"\boxed{3,5}")
    assert is_right("5, 3", r"\boxed{3,5}")
    assert not is_right("8", r"\boxed{3,5}")
    assert equivalence.check(("3", "1 2")) == "unparsable"
    assert is_right("1 2", r"\boxed{1 2}")  # the same text


def test_the_verifier_as_a_function():
    verdict = check("1/2", r"so it is \boxed{0.5}")
    assert (verdict.right, verdict.gold_read, verdict.answer_read, verdict.reason) == (True, "1/2", "0.5", "equal")
    assert check("5", "The answer is 6.").reason == "not equal"
    refused = check("x", r"\boxed{2\frac}")
    assert (refused.right, refused.answer_read) == (False, "")
    assert "not finished" in refused.reason
    assert "no answer" in check("4", "nothing").reason
    assert "gold answer can't be read" in check("1 2", "3").reason
    assert check("12", "A: 12", extract="box").right is False


def test_how_golds_are_read():
    golds = ["18 dollars", "A", "1, 2", "x=5", "[0,1)", "even", "1 2", "0.5", "25%", "The answer is 5.", r"\sqrt{2}x_1"]
    read_as = read_golds(golds)
    assert [(reading.value, reading.kind) for reading in read_as] == [
        ("18 dollar", "integer"),
        ("choice A or A", "choice"),
        ("the list 1, 2", "list"),
        ("x = 5", "equation"),
        ("[0, 1)", "interval"),
        ("the words 'even'", "text"),
        ("", "unreadable"),
        ("0.5", "decimal"),
        ("25%", "percentage"),
        ("5", "integer"),
        (r"\sqrt{2}*x_{1}", "expression"),
    ]
    flags = {gold: reading.flags for gold, reading in zip(golds, read_as, strict=True)}
    assert flags["18 dollars"] == ("the unit dollar is not required",)
    assert flags["A"] == ("a single letter",)
    assert flags["1, 2"] == ("a list of several answers",)
    assert flags["even"] == ("text, compared word for word",)
    assert flags["1 2"] == ("can't be read: numbers side by side",)
    assert flags["The answer is 5."] == ("a sentence that states the answer",)
    assert [gold for gold in golds if not flags[gold]] == ["x=5", "[0,1)", "0.5", "25%", r"\sqrt{2}x_1"]
