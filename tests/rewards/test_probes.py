"""A reward's verdicts on completions whose verdict is known, and the faults that they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from rloop_lightning.data.countdown import Countdown
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rewards.countdown import CountdownReward
from rloop_lightning.rewards.function import FunctionReward
from rloop_lightning.rewards.math import MathReward
from rloop_lightning.rewards.probes import RewardCheck, probe
from rloop_lightning.rewards.weighted import BoxFormat, WeightedSum
from rloop_lightning.rewards.workers import WorkerStartError
from rloop_lightning.types import Problem

PROBLEMS = [Problem(f"p{n}", f"What is {n} + {n}?", str(2 * n)) for n in range(10, 16)]
ALL = len(PROBLEMS)
Function = Callable[[list[Problem], list[str]], Sequence[float]]


def counts(check: RewardCheck) -> dict[str, int]:
    return {verdicts.kind: verdicts.successes for verdicts in (*check.right, *check.wrong)}


def boxed(problems: list[Problem], texts: list[str]) -> list[float]:
    return [float(f"\\boxed{{{problem.answer}}}" in text) for problem, text in zip(problems, texts, strict=True)]


def test_math_pays_golds_and_nothing_else() -> None:
    reward = MathReward()
    check = probe(reward, PROBLEMS)
    right = {"gold in a box": ALL, "gold after ####": ALL, "bare gold": ALL}
    assert counts(check) == right | {"empty": 0, "problem repeated": 0, "truncated gold": 0, "another gold": 0}
    assert check.faults() == check.warnings() == check.unpaid() == []
    assert set(reward.metrics().values()) == {0.0}  # a rollout step counts its own completions only


def test_another_spelling_and_an_alternative_of_a_gold_are_no_other_gold() -> None:
    halves = ["0.5", "\\frac{1}{2}", "1/2", "\\frac12"]
    same = [Problem(f"h{n}", f"Half, {n}?", gold) for n, gold in enumerate(halves)]
    check = probe(MathReward(), same)
    assert "another gold" not in counts(check)
    assert check.faults() == check.warnings() == []
    chained = [Problem(f"a{n}", "Which?", str(n), alternatives=(str(n + 1),)) for n in range(10, 15)]
    check = probe(MathReward(), chained)
    assert counts(check)["another gold"] == 0
    assert check.faults() == check.warnings() == []


def test_what_only_a_box_pays_has_no_fault() -> None:
    for reward in (MathReward(extract="box"), FunctionReward(boxed)):
        check = probe(reward, PROBLEMS)
        assert (counts(check)["gold in a box"], counts(check)["bare gold"]) == (ALL, 0)
        assert check.faults() == check.warnings() == check.unpaid() == []


def test_every_kind_of_completion_is_what_its_name_says() -> None:
    seen: list[str] = []

    def record(problems: list[Problem], texts: list[str]) -> list[float]:
        seen.append(texts[0])
        return [1.0] * len(texts)

    probe(FunctionReward(record), PROBLEMS)
    gold = "The answer is \\boxed{20}."
    assert seen == [gold, "#### 20", "20", "", "What is 10 + 10?", "The answer is \\boxed{2", gold.replace("20", "22")]


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (lambda problems, texts: [0.0] * len(texts), "never pays: no right completion of 6 problems is a success"),
        (lambda problems, texts: [0.5 * value for value in boxed(problems, texts)], "the largest reward is 0.5, a suc"),
        (lambda problems, texts: [1.0] * len(texts), "an empty completion is a success for 6 of 6 problems"),
        (lambda problems, texts: [float("boxed" in text) for text in texts], "another problem's gold answer is a"),
        (lambda problems, texts: [float(text[0] == "T") for text in texts], "raises IndexError: string index"),
        (lambda problems, texts: [1.0], "the function must return one number for each of 6 completions, got 1"),
        (lambda problems, texts: [float("nan")] * len(texts), "the function must return finite numbers, got nan"),
    ],
)
def test_a_reward_that_teaches_nothing_is_named(function: Function, fault: str) -> None:
    faults = probe(FunctionReward(function), PROBLEMS).faults()
    assert any(fault in message for message in faults), faults


def test_equal_rewards_of_right_and_wrong_are_a_fault_even_if_successes_differ() -> None:
    reward = WeightedSum(
        rewards={"correct": MathReward(), "format": BoxFormat()}, weights={"correct": 0.0, "format": 0.0}
    )
    (fault,) = probe(reward, PROBLEMS).faults()
    assert fault == "the reward pays right answers no more than wrong ones: mean 0 against 0"


def test_unpaid_problems_are_listed() -> None:
    def all_but_the_last(problems: list[Problem], texts: list[str]) -> list[float]:
        return [value * (problem.id != "p15") for problem, value in zip(problems, boxed(problems, texts), strict=True)]

    check = probe(FunctionReward(all_but_the_last), PROBLEMS)
    assert (check.faults(), check.unpaid()) == ([], ["p15"])
    assert check.warnings() == ["the reward: no right completion of 1 problems is a success"]


def test_countdown_knows_the_solutions_of_its_own_problems_only() -> None:
    source = Countdown(train_size=20, ood_size=20)
    for problems in (source.train(), source.evaluation()["ood"]):
        check = probe(CountdownReward(), problems)
        assert counts(check) == {
            "expression in a box": 20,
            "empty": 0,
            "problem repeated": 0,
            "truncated gold": 0,
            "another gold": 0,
        }
    foreign = [Problem("x", "3 4=7:", "7", {"numbers": (3, 4)})]
    check = probe(CountdownReward(), foreign)
    assert (check.right, check.faults()) == ([], [])


def test_a_weighted_reward_is_probed_by_the_part_that_decides_success() -> None:
    weighted = WeightedSum(rewards={"correct": CountdownReward(), "format": BoxFormat()}, weights={"format": 0.1})
    check = probe(weighted, Countdown(train_size=5).train())
    assert [(verdicts.kind, verdicts.mean_reward) for verdicts in check.right] == [("expression in a box", 1.1)]


def test_a_class_of_the_users_may_know_other_right_completions() -> None:
    class Python(Reward):
        def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
            return [float(text == f"print({p.answer})") for p, text in zip(problems, texts, strict=True)]

        def right_completions(self, problem: Problem) -> Mapping[str, str]:
            return {"program": f"print({problem.answer})"}

    assert counts(probe(Python(), PROBLEMS))["program"] == ALL


def test_without_another_gold_that_kind_is_left_out() -> None:
    check = probe(FunctionReward(boxed), [Problem("a", "1?", "yes"), Problem("b", "2?", "yes")])
    assert "another gold" not in counts(check)
    assert check.faults() == []


def test_workers_that_do_not_start_are_no_fault_of_the_reward() -> None:
    def no_workers(problems: list[Problem], texts: list[str]) -> list[float]:
        raise WorkerStartError("out of memory")

    with pytest.raises(WorkerStartError):
        probe(FunctionReward(no_workers), PROBLEMS)


def test_hostile_messages_are_escaped() -> None:
    def hostile(problems: list[Problem], texts: list[str]) -> list[float]:
        raise ValueError("\x1b[2J")

    (fault,) = probe(FunctionReward(hostile), PROBLEMS).faults()
    assert "\\x1b[2J" in fault
    assert "\x1b" not in fault
