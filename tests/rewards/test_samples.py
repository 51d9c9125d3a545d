"""The sample answers of reports: spellings that mean the gold answer, and answers close to it."""

from __future__ import annotations

import pytest

from rloop_lightning.rewards.math import MathReward
from rloop_lightning.rewards.samples import judge_samples, sample_answers
from rloop_lightning.rewards.verdict import GoldReading
from rloop_lightning.types import Problem


@pytest.mark.parametrize(
    ("value", "first", "items"),
    [
        (r"(3, \frac{\pi}{2})", r"3, \frac{\pi}{2}", r"\frac{\pi}{2}, 3"),
        (r"the list 1, \sqrt{2}", r"1, \sqrt{2}", r"\sqrt{2}, 1"),
        (r"{1, (2)}", "1, (2)", "(2), 1"),
        ("[0, 1)", "0, 1", "1, 0"),
    ],
)
def test_only_the_outer_brackets_of_a_list_are_left_out(value: str, first: str, items: str) -> None:
    samples = list(sample_answers("gold", GoldReading(value, "list", ())))
    assert samples[2:4] == [first, items]


def test_a_point_in_left_and_right_brackets_is_accepted_in_its_own_spellings() -> None:
    reward = MathReward()
    gold = r"\left( 3, \frac{\pi}{2} \right)"
    (reading,) = reward.readings([gold])
    judged = judge_samples(reward, Problem(id="p", prompt="?", answer=gold), reading)
    answers = [answer for answer, _ in (*judged.accepted, *judged.refused)]
    assert answers
    assert gold in [answer for answer, _ in judged.accepted]
    assert all(answer.replace(r"\{", "").count("{") == answer.replace(r"\}", "").count("}") for answer in answers)
