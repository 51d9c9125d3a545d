"""The metrics of an evaluated set, against loops over its rollouts and against the intervals of its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_rollout

from rloop_lightning.evaluation import majority_at_k, pass_at_k_interval
from rloop_lightning.evaluation.majority import answer_classes, answer_groups
from rloop_lightning.evaluation.record import EvaluatedPolicy, problem_table, write_record
from rloop_lightning.evaluation.set_metrics import set_metrics
from rloop_lightning.evaluation.statistics import interval
from rloop_lightning.rewards.base import Reward
from rloop_lightning.types import Group, Problem, SamplingParams

GOLD = 3


class Modulo(Reward):
    """Numbers are equal if they are so modulo 5. Counts what it compares."""

    def __init__(self) -> None:
        super().__init__()
        self.compared = 0

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [float(text != "" and int(text) % 5 == GOLD) for text in texts]

    def answers(self, texts: Sequence[str]) -> list[str | None]:
        return [text or None for text in texts]

    def equal_answers(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        assert all(first != second for first, second in pairs)
        self.compared += len(pairs)
        return [(int(first) - int(second)) % 5 == 0 for first, second in pairs]


class Unknown(Reward):
    """Does not know what an answer is."""

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [0.0] * len(texts)


def make_groups(seed: int, *, count: int = 12, samples: int = 8, numbers: int = 20) -> list[Group]:
    rng = np.random.default_rng(seed)
    reward = Modulo()
    groups = []
    for number in rng.permutation(count):  # their order is not that of the ids
        problem = Problem(f"p{number}", "?", str(GOLD))
        texts = [str(value) if rng.random() < 0.9 else "" for value in rng.integers(0, numbers, samples)]
        scored = reward([problem] * samples, texts)
        rollouts = tuple(
            replace(
                make_rollout(
                    problem.id,
                    rng.integers(0, 9, rng.integers(1, 6)),
                    finish_reason=str(rng.choice(["stop", "length"])),
                    reward=one.reward,
                ),
                text=text,
                sampling_logprobs=(-rng.random(5)).astype(np.float32),
            )
            for text, one in zip(texts, scored, strict=True)
        )
        cut = tuple(replace(r, sampling_logprobs=r.sampling_logprobs[: r.length]) for r in rollouts)
        groups.append(Group(problem, cut))
    return groups


@pytest.mark.parametrize("seed", range(6))
def test_classes_of_answers_are_what_all_comparisons_say_wherever_it_matters(seed: int) -> None:
    groups = make_groups(seed, numbers=[4, 8, 20][seed % 3])
    right = np.array([[rollout.success for rollout in group.rollouts] for group in groups])
    classes = answer_classes(groups, Modulo(), [2, 4, 8])
    assert classes is not None
    slow = np.stack(
        [
            answer_groups([rollout.text or None for rollout in group.rollouts], lambda a, b: (int(a) - int(b)) % 5 == 0)
            for group in groups
        ]
    )
    for k in (2, 4, 8):
        assert majority_at_k(classes, right, k).tolist() == majority_at_k(slow, right, k).tolist()


def test_answers_are_compared_only_where_it_can_change_the_majority() -> None:
    def of(*texts: str) -> Group:
        problem = Problem("p", "?", str(GOLD))
        scored = Modulo()([problem] * len(texts), texts)
        return Group(
            problem,
            tuple(replace(make_rollout("p", reward=s.reward), text=t) for t, s in zip(texts, scored, strict=True)),
        )

    for group, compared in (
        (of("1", "6", "2", "7"), 0),  # no success
        (of("3", "8", "13", "1"), 0),  # successes are the majority
        (of("3", "", "1", "6"), 1),
        (of("3", "1", "2", "4"), 3),
    ):
        reward = Modulo()
        answer_classes([group], reward, [4])
        assert reward.compared == compared
    timed_out = of("3", "1", "6", "2")
    faulty = replace(timed_out.rollouts[1], check_fault="timeout")
    reward = Modulo()
    classes = answer_classes(
        [replace(timed_out, rollouts=(timed_out.rollouts[0], faulty, *timed_out.rollouts[2:]))], reward, [4]
    )
    assert reward.compared == 1
    assert classes is not None
    assert classes.tolist() == [[0, 1, 2, 3]]


def test_without_answers_there_is_no_majority() -> None:
    metrics = set_metrics(make_groups(0), Unknown(), [1, 4])
    assert not any(name.startswith("maj@") for name in metrics)
    assert "pass@4" in metrics


@pytest.mark.parametrize("seed", range(3))
def test_metrics_and_their_intervals_are_what_loops_say(seed: int, tmp_path: Path) -> None:
    groups = make_groups(seed)
    metrics = set_metrics(groups, Modulo(), [1, 4, 8])
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    surprises = [-float(logprob) for rollout in rollouts for logprob in rollout.sampling_logprobs]
    assert metrics["entropy_nats"] == pytest.approx(np.mean(surprises))
    assert metrics["entropy_nats_low"] < metrics["entropy_nats"] < metrics["entropy_nats_high"]
    wrong = [len(rollout.completion_ids) for rollout in rollouts if not rollout.success]
    assert metrics["length_wrong_tokens"] == pytest.approx(np.mean(wrong))
    assert metrics["truncated_rate"] == pytest.approx(np.mean([r.finish_reason == "length" for r in rollouts]))
    texts = [{rollout.text for rollout in group.rollouts if rollout.success} for group in groups]
    assert metrics["distinct_solutions"] == pytest.approx(np.mean([len(found) for found in texts if found]))
    # pass@k and its interval are those of the record, whatever the order of its rows.
    record = tmp_path / "record.parquet"
    write_record(record, EvaluatedPolicy("base", 0, "evaluate", 0), [problem_table("test", groups, SamplingParams(8))])
    for k in (1, 4, 8):
        found = pass_at_k_interval([record], "test", k)
        assert metrics[f"pass@{k}"] == pytest.approx(found.estimate)
        assert (metrics[f"pass@{k}_low"], metrics[f"pass@{k}_high"]) == (found.low, found.high)
    ordered = sorted(groups, key=lambda group: group.problem.id)
    classes = answer_classes(ordered, Modulo(), [4])
    assert classes is not None
    values = majority_at_k(classes, np.array([[r.success for r in group.rollouts] for group in ordered]), 4)
    assert metrics["maj@4"] == pytest.approx(values.mean())
    assert metrics["maj@4_high"] == interval(values).high
    assert "maj@1" not in metrics


def test_the_interval_of_the_entropy_is_that_of_a_bootstrap_over_problems() -> None:
    groups = make_groups(7, count=200)
    metrics = set_metrics(groups, Unknown(), [1])
    surprises = np.array([-sum(r.sampling_logprobs.sum() for r in group.rollouts) for group in groups])
    tokens = np.array([sum(r.length for r in group.rollouts) for group in groups])
    rng = np.random.default_rng(1)
    draws = [rng.integers(200, size=200) for _ in range(4000)]
    ratios = [surprises[drawn].sum() / tokens[drawn].sum() for drawn in draws]
    low, high = np.quantile(ratios, [0.025, 0.975])
    width = high - low
    assert metrics["entropy_nats_low"] == pytest.approx(low, abs=0.06 * width)
    assert metrics["entropy_nats_high"] == pytest.approx(high, abs=0.06 * width)


def test_a_set_of_one_problem_has_no_interval_and_nothing_is_nan() -> None:
    (group,) = make_groups(1, count=1)
    metrics = set_metrics([group], Modulo(), [1, 8])
    assert not [name for name in metrics if name.endswith(("_low", "_high", "_stderr"))]
    assert all(np.isfinite(list(metrics.values())))
    failed = Group(group.problem, tuple(replace(rollout, success=False) for rollout in group.rollouts))
    assert not {"length_right_tokens", "distinct_solutions"} & set_metrics([failed], Modulo(), [1]).keys()
