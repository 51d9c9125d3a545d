"""The evaluator against slow numbers, and evaluation inside an exploration."""

import itertools
from dataclasses import replace

import pytest
from builders import StepMetrics, fit, make_policy, make_problems, make_sampler, one_right, random_batch

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.callbacks.evaluation import InsideEvaluation
from rloop_lightning.evaluation.evaluator import EvaluationConfig, Evaluator
from rloop_lightning.evaluation.record import read_record
from rloop_lightning.rollouts.sampler import SamplingCost
from rloop_lightning.types import RolloutStep, SamplingParams


def write(problem, g, call):
    """Problem p solves its first p of 5 samples."""
    return ("1" if g < problem else "0") + "x" * (g % 3)


def slow_pass_at_k(successes, samples, k):
    """Over every way to choose k of the samples: how often one of them succeeds."""
    outcomes = [True] * successes + [False] * (samples - successes)
    choices = list(itertools.combinations(outcomes, k))
    return sum(any(choice) for choice in choices) / len(choices)


def make_evaluator(seed=0, sets=None, **config):
    settings = {"samples": 5, "k": (1, 2, 5), **config}
    sets = sets or {"test": make_problems(4), "ood": make_problems(2)}
    return Evaluator(make_sampler(write), sets, EvaluationConfig(**settings), seed)


def test_evaluation_wants_no_record_of_experts():
    evaluator = make_evaluator()
    assert evaluator.sampler.engine.sampling(0).report_routed_experts
    evaluator("test", SamplingCost())
    ((_, _, sampling),) = evaluator.sampler.engine.calls
    assert not sampling.report_routed_experts


def test_metrics_equal_slow_ones():
    evaluator, cost = make_evaluator(), SamplingCost()
    metrics = evaluator("test", cost).metrics
    for k in (1, 2, 5):
        expected = sum(slow_pass_at_k(successes, 5, k) for successes in (0, 1, 2, 3)) / 4
        assert metrics[f"eval/test/pass@{k}"] == pytest.approx(expected)
    # lengths of five samples: 1, 2, 3, 1, 2
    assert metrics["eval/test/length_tokens"] == pytest.approx(9 / 5)
    # The engine is deterministic: the same call again gives the logprobs to average over tokens, not over rollouts.
    problems, n, sampling = make_problems(4), 5, evaluator.sampler.engine.calls[0][2]
    rollouts = evaluator.sampler.engine.generate(problems, n, sampling)
    surprises = [-float(logprob) for rollout in rollouts for logprob in rollout.sampling_logprobs]
    assert metrics["eval/test/entropy_nats"] == pytest.approx(sum(surprises) / len(surprises))
    # Shares of successes 0, 1/5, 2/5, 3/5: variance (0.09 + 0.01 + 0.01 + 0.09) / 3 between four problems.
    assert metrics["eval/test/pass@1_stderr"] == pytest.approx((0.2 / 3 / 4) ** 0.5)
    assert (cost.rollouts, cost.tokens) == (20, 36)


def test_the_named_sets_are_evaluated_with_draws_of_their_own():
    evaluator = make_evaluator()
    assert evaluator("ood", SamplingCost()).metrics["eval/ood/pass@1"] == pytest.approx(0.1)  # 0 and 1 of 5
    assert evaluator("test", SamplingCost()).metrics["eval/test/pass@1"] == pytest.approx(0.3)
    seeds = [sampling.seed for _, _, sampling in evaluator.sampler.engine.calls]
    assert seeds[0] != seeds[1]


def test_policies_meet_the_same_draws():
    evaluator = make_evaluator()
    evaluator("test", SamplingCost())
    evaluator("test", SamplingCost())
    first, second = evaluator.sampler.engine.calls
    assert first == second
    assert make_evaluator(seed=1)("test", SamplingCost()).metrics["eval/test/entropy_nats"] != pytest.approx(
        evaluator("test", SamplingCost()).metrics["eval/test/entropy_nats"]
    )


def test_max_problems_takes_the_first_ones():
    evaluator = make_evaluator(max_problems=2)
    assert evaluator("test", SamplingCost()).metrics["eval/test/pass@1"] == pytest.approx(0.1)
    assert [ids for ids, _, _ in evaluator.sampler.engine.calls] == [["p0", "p1"]]


@pytest.mark.parametrize(
    ("every", "steps", "at"), [(1, 4, [1, 2, 3]), (2, 6, [2, 4]), (2, 5, [2, 4]), (5, 5, []), (9, 5, [])]
)
def test_inside_evaluation_comes_at_its_steps_but_the_last(every, steps, at, tmp_path):
    metrics = StepMetrics()
    callback = InsideEvaluation(make_evaluator(), ["test"], every, records=tmp_path, round=1)
    batches = [RolloutStep(i, (), random_batch(((2, 2), (2, 3))), {}) for i in range(steps)]
    fit(DAPO(updates_per_step=1), make_policy(), batches, [callback, metrics])
    assert [i + 1 for i, step in enumerate(metrics.steps) if "eval/test/pass@1" in step] == at
    assert [i + 1 for i, step in enumerate(metrics.steps) if step.get("time/evaluate_s", 0) > 0] == at
    assert all(step["eval/test/pass@1"] == pytest.approx(0.3) for step in metrics.steps if "eval/test/pass@1" in step)
    assert not any("eval/ood/pass@1" in step for step in metrics.steps)


def test_the_reward_decides_on_success():
    evaluator = Evaluator(make_sampler(one_right), {"a": make_problems(3)}, EvaluationConfig(samples=4, k=(1, 4)), 0)
    metrics = evaluator("a", SamplingCost()).metrics
    assert (metrics["eval/a/pass@1"], metrics["eval/a/pass@4"]) == (0.25, 1.0)


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ValueError, match=r"--eval\.") as raised:
        EvaluationConfig(every_n_steps=-1, samples=0, k=(0,), max_problems=-1)
    flags = [line.split(":")[0] for line in str(raised.value).splitlines()]
    assert flags == ["--eval.every_n_steps", "--eval.samples", "--eval.k", "--eval.max_problems"]
    for k in ((), (1, 33)):
        with pytest.raises(ValueError, match=r"--eval.k must lie between 1 and --eval.samples \(32\)"):
            EvaluationConfig(k=k)


def test_the_sampling_of_an_evaluation_is_the_engines_but_for_what_is_set():
    training = SamplingParams(max_new_tokens=64, temperature=0.7, top_k=5, top_p=0.9, seed=3)
    as_training = EvaluationConfig().sampling(training)
    assert as_training == replace(training, report_routed_experts=False, report_kept_tokens=False)
    own = EvaluationConfig(temperature=0.2, top_k=0, top_p=1.0, max_new_tokens=512).sampling(training)
    assert own == SamplingParams(
        max_new_tokens=512,
        temperature=0.2,
        top_k=0,
        top_p=1.0,
        seed=3,
        report_routed_experts=False,
        report_kept_tokens=False,
    )
    evaluator = make_evaluator(temperature=0.2, max_new_tokens=9)
    evaluator("test", SamplingCost())
    ((_, _, sampling),) = evaluator.sampler.engine.calls
    assert (sampling.temperature, sampling.max_new_tokens) == (0.2, 9)


def test_greedy_evaluation_takes_one_rollout_a_problem():
    assert EvaluationConfig(temperature=0, samples=1, k=(1,)).sampling(SamplingParams(8)).temperature == 0
    with pytest.raises(
        ValueError, match=r"--eval\.temperature 0 is greedy.* set --eval\.samples 1 and --eval\.k \[1\]"
    ):
        EvaluationConfig(temperature=0)


@pytest.mark.parametrize(("field", "value"), [("temperature", -1), ("top_p", 0), ("top_k", -1), ("max_new_tokens", 0)])
def test_wrong_sampling_is_named(field, value):
    with pytest.raises(ValueError, match=rf"--eval\.{field}: expected"):
        EvaluationConfig(**{field: value})


def test_an_evaluation_keeps_a_row_for_each_problem():
    rows = make_evaluator(temperature=0.5)("test", SamplingCost()).problems.to_pylist()
    assert [row["problem_id"] for row in rows] == ["p0", "p1", "p2", "p3"]
    assert [row["successes"] for row in rows] == [0, 1, 2, 3]
    # The third sample of a problem has two further tokens, the second and the fifth one.
    assert {tuple(row["lengths"]) for row in rows} == {(1, 2, 3, 1, 2)}
    assert rows[2]["right"] == [True, True, False, False, False]
    assert {(row["set"], row["samples"], row["length_mean"], row["temperature"]) for row in rows} == {
        ("test", 5, 9 / 5, 0.5)
    }


def test_evaluations_inside_an_exploration_are_recorded_under_their_step(tmp_path):
    callback = InsideEvaluation(make_evaluator(), ["ood", "test"], 2, records=tmp_path, round=1)
    batches = [RolloutStep(i, (), random_batch(((2, 2), (2, 3))), {}) for i in range(5)]
    fit(DAPO(updates_per_step=1), make_policy(), batches, [callback])
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == ["step-000002.parquet", "step-000004.parquet"]
    table = read_record(tmp_path / "step-000004.parquet")
    assert table["set"].to_pylist() == ["ood"] * 2 + ["test"] * 4
    (key,) = {tuple(row[name] for name in ("policy", "round", "phase", "step")) for row in table.to_pylist()}
    assert key == ("round 2 step 4", 1, "explore", 4)
