"""The countdown reward against a table of completions, hostile text and an independent evaluation."""

import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rloop_lightning.rewards.boxes import last_box
from rloop_lightning.rewards.countdown import CountdownReward
from rloop_lightning.types import Problem, Scored


def make_problem(numbers, target) -> Problem:
    return Problem(id="p", prompt="", answer=str(target), metadata={"numbers": tuple(numbers)})


def reward(text: str, numbers=(3, 7, 12), target=33) -> float:
    [value] = CountdownReward().rewards([make_problem(numbers, target)], [text])
    return value


@pytest.mark.parametrize(
    "text",
    [
        r"7*3=21;21+12=33;\boxed{7*3+12}",
        r"\boxed{12+3*7}",
        r"\boxed{12 + 3 * 7}",
        r"\boxed{((12)+(3*7))}",
        r"\boxed{12 - -(3*7)}",
        r"\boxed{12--3*7}",
        r"nonsense \boxed{3} then \boxed{7*3+12} and more",
        r"\boxed{7\times 3+12}",
        r"\boxed{7 \cdot 3 + 12}",
        "\\boxed{1} }}} {{{ \\boxed{7*3+12}",
    ],
)
def test_right(text):
    assert reward(text) == 1.0


@pytest.mark.parametrize(
    ("text", "numbers", "target"),
    [
        (r"\boxed{12/(3-8/4)}", (3, 4, 8, 12), 12),
        (r"\boxed{8/(3-8/3)}", (3, 3, 8, 8), 24),  # by way of a fraction
        (r"\boxed{24 \div 2 * 1}", (1, 2, 24), 12),
        (r"\boxed{((7+7)-9)+12}", (7, 7, 9, 12), 17),
        (r"\boxed{-7+9+1}", (1, 7, 9), 3),
        (r"\boxed{3-7+1}", (1, 3, 7), -3),
        (r"\boxed{7-7+0}", (0, 7, 7), 0),
    ],
)
def test_right_values_of_other_problems(text, numbers, target):
    assert reward(text, numbers, target) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7*3+12",
        r"\boxed{}",
        r"\boxed{33}",
        r"\boxed{7*3-12}",  # wrong value
        r"\boxed{7*3+12=33}",
        r"\boxed{7*3+12*1}",  # a number too many
        r"\boxed{7*3+12+7-7}",  # numbers twice
        r"\boxed{7+3}",  # a number missing
        r"\boxed{07*3+12}",
        r"\boxed{7*3+1 2}",
        r"\boxed{7*3 12}",
        r"\boxed{7(3)+12}",
        r"\boxed{(7)(3)+12}",
        r"\boxed{7**3+12}",
        r"\boxed{7//3+12}",
        r"\boxed{7* *3+12}",
        r"\boxed{7*3+12",  # not closed
        r"\boxed{7*3+12}\boxed{7*3+12",  # the last box is not closed
        r"\boxed{7*3+12}\boxed{7*3}",  # only the last one counts
        r"\boxed{\boxed{7*3+12}}x\boxed{1}",
        r"\boxed{{7*3+12}}",  # braces are no arithmetic
        r"\boxed{(7*3+12}",
        r"\boxed{7*3+12)}",
        r"\boxed{7*3+12()}",
        r"\boxed{10**10**10}",
        r"\boxed{7^3+12}",
        r"\boxed{7*3+12!}",
        r"\boxed{7*3+0012}",
        r"\boxed{7*3+12.0}",
        r"\boxed{7*3+12,0}",
        r"\boxed{7*3+1_2}",
        "\\boxed{7*3+12\n}",
        "\\boxed{\uff17*3+12}",  # full-width
        "\\boxed{\u0667*3+12}",  # Arabic-Indic
        "\\boxed{7*3+12\u00b2}",
        "\\boxed{7\u00d73+12}",
        r"\boxed{__import__('os')}",
        r"\boxed{7*3+12\x00}",
        "\\boxed{7*3+12\x00}",
        r"\boxed{" + "9" * 100_000 + "}",
        r"\boxed{" + "(" * 5_000 + "7*3+12" + ")" * 5_000 + "}",
        r"\boxed{" + "-" * 80 + "7*3+12}x" + r"\boxed{" + "(" * 50 + "7*3+12}",
    ],
)
def test_wrong_or_hostile(text):
    assert reward(text) == 0.0


@pytest.mark.parametrize("text", [r"\boxed{7/(3-3)}", r"\boxed{(3-3)/(3-3)*7}", r"\boxed{7*0/0}"])
@pytest.mark.parametrize("target", [0, 7])
def test_division_by_zero_is_wrong(text, target):
    numbers = [int(c) for c in text if c.isdigit()]
    assert reward(text, numbers, target) == 0.0


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{a}\boxed{b}", "b"),
        (r"\boxed{a{b}{c{d}}}e}", "a{b}{c{d}}"),
        (r"\boxed{a\boxed{b}", "b"),
        (r"\boxed{a}\boxed{b", None),
        ("none", None),
    ],
)
def test_last_box(text, box):
    assert last_box(text) == box


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        r"\boxed{" * 150_000,
        r"\boxed{" + "{" * 1_000_000,
        r"\boxed{" + "{}" * 500_000 + "}",
        r"\boxed{7*3+12}" * 80_000,
        r"\boxed{" + " " * 1_000_000 + "7*3+12}",
        r"\boxed{7" + r"\times" * 200_000 + "}",
    ],
    ids=["plain", "boxes", "open", "pairs", "right", "spaces", "operators"],
)
def test_a_megabyte_takes_well_under_a_second(text):
    start = time.monotonic()
    assert reward(text) == float(text.endswith(r"\boxed{7*3+12}"))
    assert time.monotonic() - start < 1.0 + 2.0  # the first call in a process imports sympy


def test_works_off_the_main_thread():
    rewards = []
    thread = threading.Thread(target=lambda: rewards.append(reward(r"\boxed{11*(9-8)}", (8, 9, 11), 11)))
    thread.start()
    thread.join()
    assert rewards == [1.0]


def test_rewards_stand_in_the_order_of_the_texts():
    problems = [make_problem((3, 7, 12), 33), make_problem((1, 2), 3), make_problem((1, 2), 2)]
    scored = CountdownReward()(problems, [r"\boxed{7*3+12}", r"\boxed{2-1}", r"\boxed{2/1}"])
    assert scored == [Scored(1.0, True), Scored(0.0, False), Scored(1.0, True)]
    with pytest.raises(ValueError, match="zip"):
        CountdownReward()(problems, [""])


def test_unusable_names_the_problem():
    bad_answer = Problem(id="a", prompt="", answer="three", metadata={"numbers": (1, 2)})
    no_numbers = Problem(id="b", prompt="", answer="3")
    text_numbers = Problem(id="c", prompt="", answer="3", metadata={"numbers": ("1", "2")})
    messages = CountdownReward().unusable([bad_answer, make_problem((1, 2), 3), no_numbers, text_numbers])
    assert list(messages) == ["a", "b", "c"]


@st.composite
def arithmetic(draw):
    """Numbers, an expression of them and its value, worked out as it is built (None: division by zero)."""
    leaves = draw(st.lists(st.integers(1, 12), min_size=2, max_size=5))
    pool = [(str(n), Fraction(n)) for n in leaves]
    while len(pool) > 1:
        (a, x), (b, y) = pool.pop(draw(st.integers(0, len(pool) - 1))), pool.pop(draw(st.integers(0, len(pool) - 1)))
        operator = draw(st.sampled_from("+-*/"))
        if x is None or y is None or (operator == "/" and y == 0):
            value = None
        else:
            value = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else None}[operator]
        space = draw(st.sampled_from(["", " "]))
        pool.append((f"({a}{space}{operator}{b})", value))
    text, value = pool[0]
    return leaves, draw(st.sampled_from([text, text[1:-1]])), value


@settings(max_examples=200, deadline=None)
@given(arithmetic(), st.integers(-20, 200))
def test_agrees_with_exact_arithmetic(expression, other_target):
    numbers, text, value = expression
    for target in {other_target} | ({int(value)} if value is not None else set()):
        assert reward(rf"\boxed{{{text}}}", numbers, target) == float(value == target), (text, value, target)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*"0123456789+-*/() {}=;\\", r"\boxed{", "é", "٣"]), max_size=60).map("".join))
def test_never_raises(text):
    assert reward(text, (1, 2), 3) in (0.0, 1.0)
    assert reward(rf"\boxed{{{text}}}", (1, 2), 3) in (0.0, 1.0)
