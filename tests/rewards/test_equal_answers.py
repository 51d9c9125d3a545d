"""Answers of completions and their equality, which maj@k is counted with."""

from __future__ import annotations

from collections.abc import Sequence

from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.countdown import CountdownReward
from rloop_lightning.rewards.math import MathReward
from rloop_lightning.rewards.weighted import BoxFormat, WeightedSum
from rloop_lightning.types import Problem

TEXTS = ["so \\boxed{ 1/2 }", "no answer at all", "the answer is 0.5", "\\boxed{}"]


class Length(Reward):
    """Knows nothing of answers."""

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [float(len(text)) for text in texts]


def test_math_answers_are_the_parts_that_are_compared_and_equal_as_to_a_gold_answer() -> None:
    reward = MathReward(workers=1)
    assert reward.answers(TEXTS) == ["1/2", None, "0.5", None]
    assert MathReward(extract="box").answers(TEXTS) == ["1/2", None, None, None]
    pairs = [("1/2", "0.5"), ("12", "13"), ("-7", "7"), ("x+1", "1+x"), ("x+1", "x"), ("1000", "1{,}000"), ("?", "!")]
    assert reward.equal_answers(pairs) == [True, False, False, True, False, True, False]
    assert reward.equal_answers([]) == []
    assert set(reward.metrics().values()) == {0}  # no completion was scored
    reward.close()


def test_integers_need_no_worker() -> None:
    reward = MathReward(workers=1)
    assert reward.equal_answers([("12", "13"), ("-7", "0")]) == [False, False]
    assert reward.pool.pids() == []


def test_a_pair_whose_check_exceeds_its_limit_is_not_equal() -> None:
    reward = MathReward(workers=1, time_limit_s=0.2)
    tower = "9^{9^{9^{9}}}"
    assert reward.equal_answers([(tower, f"{tower}+1"), ("1/2", "0.5")])[1]
    reward.close()


def test_countdown_answers_are_expressions() -> None:
    reward = CountdownReward()
    assert reward.answers(["\\boxed{1 + 2}", "3", "\\boxed{1+2}"]) == ["1+2", None, "1+2"]
    assert reward.equal_answers([("1+2", "2+1")]) == [False]


def test_a_sum_takes_the_answers_of_the_reward_that_decides_success() -> None:
    both = WeightedSum(rewards={"correct": MathReward(workers=1), "format": BoxFormat()})
    assert both.answers(TEXTS) == ["1/2", None, "0.5", None]
    assert both.equal_answers([("1/2", "0.5")]) == [True]
    both.parts["correct"].close()
    assert WeightedSum(rewards={"correct": Length()}).answers(TEXTS) is None
