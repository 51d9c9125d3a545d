"""The reach of the filter: which success rates are possible after n rollouts."""

import random

import numpy as np
import pyarrow as pa
import pytest

from rloop_lightning.rollouts.reach import Reach, Tally, fewest_rollouts
from rloop_lightning.types import Group, Problem, Rollout


def make_group(name, successes):
    one = np.ones(1)
    rollouts = [Rollout(name, one, one, one, "", "stop", reward=float(right), success=right) for right in successes]
    return Group(Problem(name, "", ""), tuple(rollouts))


@pytest.mark.parametrize(
    ("rate", "fewest"), [(0.10, 11), (0.05, 21), (0.5, 3), (1.0, 2), (0.13, 8), (0.125, 9), (0.3, 4), (1 / 3, 4)]
)
def test_the_fewest_rollouts_are_the_first_whose_lowest_rate_passes_the_filter(rate, fewest):
    assert fewest_rollouts(rate) == fewest
    assert 1 / fewest < rate <= 1 / (fewest - 1)


@pytest.mark.parametrize(
    ("problems", "groups", "per_problem", "within"),
    [
        (17_000, 512 * 200, 16, 17_000),  # the paper: six visits
        (17_000, 64 * 200, 8, 0),  # one visit of 8 rollouts: the lowest rate is 12.5 %
        (17_000, 64 * 200, 11, 12_800),
        (1_000, 1_500, 8, 500),  # half of the problems get a second visit
        (300, 32 * 60, 8, 300),
    ],
)
def test_problems_within_reach(problems, groups, per_problem, within):
    assert Reach(problems, groups, per_problem, 0.10).within == within


def test_extra_captures_and_rounds_add_rollouts():
    once = Reach(100, 50, 8, 0.10)
    assert once.within == 0
    assert once.over(2).within == 50  # the problems that both rounds visit
    assert Reach(100, 50, 8, 0.10, extra_rollouts=3).within == 50
    assert Reach(100, 50, 8, 0.10, extra_rollouts=11).within == 100


def test_each_remedy_is_sufficient():
    reach = Reach(17_000, 64 * 200, 8, 0.10)
    assert reach.remedies() == [
        "--loop.rollouts_per_problem 11",
        "at most 6,400 problems",
        "--loop.problems_per_step or --loop.explore_steps 2.7 times as large",
        "--filter.max_success_rate 0.13",
        "--filter.rate_over run with --loop.rounds 2",
    ]
    assert Reach(17_000, 64 * 200, 11, 0.10).within > 0
    assert Reach(6_400, 64 * 200, 8, 0.10).within == 6_400
    assert Reach(17_000, int(64 * 200 * 2.7), 8, 0.10).within == 17_000
    assert Reach(17_000, 64 * 200, 8, 0.13).within > 0
    assert reach.over(2).within > 0


@pytest.mark.parametrize("earlier", [{}, {"p1": (4, 1), "p3": (2, 0), "p9": (12, 1)}])
def test_the_tally_agrees_with_a_count_from_scratch(earlier):
    rng = random.Random(0)
    counts = {"p0": [12, 1], "p1": [3, 0]}
    tally = Tally(0.3, _table(counts), _table(earlier) if earlier else None)
    for _ in range(60):
        name = f"p{rng.randrange(6)}"
        successes = [rng.random() < 0.2 for _ in range(rng.randrange(1, 4))]
        tally.add([make_group(name, successes)])
        count = counts.setdefault(name, [0, 0])
        count[0] += len(successes)
        count[1] += sum(successes)
        rated = [
            (right, n + earlier.get(p, (0, 0))[0], right + earlier.get(p, (0, 0))[1])
            for p, (n, right) in counts.items()
        ]
        assert tally.metrics() == {
            "pool/problems_solved": sum(now > 0 for now, _, _ in rated),
            "pool/problems_within_reach": sum(1 / n < 0.3 for _, n, _ in rated),
            "pool/hard_problems": sum(now > 0 and right / n < 0.3 for now, n, right in rated),
        }


def _table(counts):
    rollouts, successes = zip(*counts.values(), strict=True)
    return pa.table({"problem_id": list(counts), "rollouts": rollouts, "successes": successes})
