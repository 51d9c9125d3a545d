"""Coverage and distinct solutions against loops and sets."""

import numpy as np
import pytest

from rloop_lightning.evaluation import coverage, distinct_solutions, mean_distinct_solutions


@pytest.mark.parametrize("seed", range(4))
def test_coverage_is_what_sets_say(seed):
    rng = np.random.default_rng(seed)
    pool, now = rng.random(40) < 0.6, rng.random(40) < 0.4
    ever, current = ({q for q in range(40) if solved[q]} for solved in (pool, now))
    result = coverage(pool, now)
    assert result.now == len(current) / 40
    assert result.ever == len(ever | current) / 40
    assert result.lost == len(ever - current) / 40
    assert result.ever == pytest.approx(result.now + result.lost)


@pytest.mark.parametrize("other", [np.zeros(2), np.zeros((3, 1)), np.zeros(0)])
def test_coverage_of_different_problems_is_refused(other):
    with pytest.raises(ValueError, match="the same problems"):
        coverage(np.zeros(len(other) and 3), other)


@pytest.mark.parametrize("seed", range(4))
def test_distinct_solutions_are_what_loops_say(seed):
    rng = np.random.default_rng(seed)
    ids = rng.choice(["p", "q", "r"], 60).tolist()
    solutions = rng.choice(["a", "b", "c", "d"], 60).tolist()
    right = rng.random(60) < 0.3
    expected = {}
    for problem_id in dict.fromkeys(ids):
        seen = []
        for i in range(60):
            if ids[i] == problem_id and right[i] and solutions[i] not in seen:
                seen.append(solutions[i])
        expected[problem_id] = len(seen)
    result = distinct_solutions(ids, solutions, right)
    assert list(result.items()) == list(expected.items())


def test_distinct_solutions_at_the_edges():
    assert distinct_solutions([], [], []) == {}
    assert distinct_solutions(["p"], ["a"], [False]) == {"p": 0}
    with pytest.raises(ValueError, match="one entry per rollout, got 2, 1 and 2"):
        distinct_solutions(["p", "p"], ["a"], [True, True])


def test_the_mean_of_distinct_solutions_is_over_solved_problems():
    rows = ["p", "p", "p", "q", "r"], ["a", "b", "a", "a", "a"], [True, True, True, False, True]
    assert mean_distinct_solutions(*rows) == 1.5
    assert np.isnan(mean_distinct_solutions(["p"], ["a"], [False]))
