"""Rewards that are made of several, against values worked out by hand."""

import pytest

from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.weighted import BoxFormat, LengthPenalty, WeightedSum
from rloop_lightning.types import Problem, Scored


class Equal(Reward):
    """2 where the text is the answer; success from 2 on."""

    def __init__(self):
        super().__init__(success_threshold=2.0)

    def rewards(self, problems, texts):
        return [2.0 * (text == problem.answer) for problem, text in zip(problems, texts, strict=True)]

    def metrics(self):
        return {"checked": 3.0, "odd": 1.0}

    def unusable(self, problems):
        return {problem.id: "empty" for problem in problems if not problem.answer}


PROBLEM = Problem(id="p", prompt="", answer=r"\boxed{1}")  # 9 characters


def make_sum(**kwargs):
    parts = {"correct": Equal(), "format": BoxFormat(), "length": LengthPenalty(free_characters=9, max_characters=19)}
    return WeightedSum(rewards=parts, **kwargs)


def test_reward_is_the_weighted_sum_and_success_is_correctness_alone():
    reward = make_sum(weights={"format": 0.5, "length": 10.0})
    texts = [r"\boxed{1}", r"\boxed{2}", "1", r"\boxed{1}" + "x" * 5]
    expected = [
        Scored(2.5, True, {"correct": 2.0, "format": 1.0, "length": 0.0}),
        Scored(0.5, False, {"correct": 0.0, "format": 1.0, "length": 0.0}),
        Scored(0.0, False, {"correct": 0.0, "format": 0.0, "length": 0.0}),
        Scored(-4.5, False, {"correct": 0.0, "format": 1.0, "length": -0.5}),
    ]
    assert reward([PROBLEM] * 4, texts) == expected
    assert reward.rewards([PROBLEM] * 4, texts) == [2.5, 0.5, 0.0, -4.5]


class Unchecked(BoxFormat):
    def check_faults(self, problems, texts):
        return ["timeout" if text == "slow" else "" for text in texts]


def test_the_fault_of_any_part_is_told():
    reward = WeightedSum(rewards={"correct": Equal(), "format": Unchecked()})
    assert [scored.check_fault for scored in reward([PROBLEM] * 2, ["1", "slow"])] == ["", "timeout"]


def test_a_heavy_part_makes_no_success_and_unmakes_none():
    long_problem = Problem(id="p", prompt="", answer="1" * 100)
    [penalised] = make_sum(weights={"length": 100.0})([long_problem], ["1" * 100])
    assert (penalised.reward, penalised.success) == (-98.0, True)
    [formatted] = make_sum(weights={"format": 100.0})([PROBLEM], [r"\boxed{2}"])
    assert (formatted.reward, formatted.success) == (100.0, False)


def test_success_may_be_another_part():
    assert make_sum(success="format")([PROBLEM], [r"\boxed{2}"])[0].success


def test_counts_add_up_and_golds_are_checked_by_all():
    reward = WeightedSum(rewards={"correct": Equal(), "again": Equal(), "format": BoxFormat()})
    assert reward.metrics() == {"checked": 6.0, "odd": 2.0}
    assert reward.unusable([PROBLEM, Problem(id="q", prompt="", answer="")]) == {"q": "empty"}


@pytest.mark.parametrize(("length", "penalty"), [(0, 0.0), (10, 0.0), (11, -0.1), (15, -0.5), (20, -1.0), (1000, -1.0)])
def test_length_penalty(length, penalty):
    reward = LengthPenalty(free_characters=10, max_characters=20)
    assert reward.rewards([PROBLEM], ["x" * length]) == [penalty]


@pytest.mark.parametrize(
    ("text", "value"), [(r"\boxed{}", 1.0), (r"\boxed{1", 0.0), ("1", 0.0), (r"a \boxed{b} c", 1.0)]
)
def test_box_format(text, value):
    assert BoxFormat().rewards([PROBLEM], [text]) == [value]


def test_what_cannot_be_is_said_all_at_once():
    with pytest.raises(ValueError, match="success") as error:
        make_sum(weights={"colour": 1.0, "format": float("nan")}, success="truth")
    assert [line.split(" ")[0] for line in str(error.value).splitlines()] == [
        "--reward.weights",
        "--reward.weights:",
        "--reward.success",
    ]
    with pytest.raises(ValueError, match="free_characters"):
        LengthPenalty(free_characters=5, max_characters=5)
