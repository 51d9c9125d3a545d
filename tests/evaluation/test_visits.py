"""The latest visits of problems: similarity and coverage against loops, and the same after a pool is read again."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from builders import make_problems, make_rollout

from rloop_lightning.evaluation.visits import Visits
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.types import Group, Rollout

ROLLOUTS = 4  # of a problem, all of which are kept


def make_steps(seed: int, *, steps: int = 9, size: int = ROLLOUTS) -> list[list[Group]]:
    """Rollout steps of three of six problems."""
    rng = np.random.default_rng(seed)
    problems = make_problems(6)
    return [
        [
            Group(problems[number], tuple(make(rng, f"p{number}") for _ in range(size)))
            for number in rng.permutation(6)[:3]
        ]
        for _ in range(steps)
    ]


def make(rng: np.random.Generator, problem_id: str) -> Rollout:
    return make_rollout(problem_id, rng.integers(0, 3, rng.integers(1, 12)), reward=float(rng.random() < 0.2))


def rows(groups: list[Group]) -> tuple[list[str], list[np.ndarray], list[bool]]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return (
        [rollout.problem_id for rollout in rollouts],
        [rollout.completion_ids for rollout in rollouts],
        [rollout.success for rollout in rollouts],
    )


def added(visits: Visits, steps: list[list[Group]], start: int = 0) -> list[tuple[float, float, int, int]]:
    """The similarity of each step."""
    found = []
    for step, groups in enumerate(steps, start):
        ids, completions, right = rows(groups)
        similarity = visits.similarity(step, ids, completions)
        found.append((similarity.intra_step, similarity.inter_step, similarity.intra_pairs, similarity.inter_pairs))
        visits.add(step, ids, completions, right)
    return found


def written(folder: Path, steps: list[list[Group]]) -> RolloutPool:
    pool = RolloutPool(folder)
    for step, groups in enumerate(steps):
        pool.write(f"step-{step + 1:06d}", groups, round=0, rollout_step=step, run_id="run")
    return pool


def jaccard(first: Rollout, second: Rollout) -> float:
    grams = []
    for rollout in (first, second):
        ids = rollout.completion_ids.tolist()
        grams.append({tuple(ids[i : i + 4]) for i in range(max(1, len(ids) - 3))})
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_similarity_and_coverage_are_what_loops_say():
    steps = make_steps(0)
    visits = Visits(seed=0)
    latest: dict[str, Group] = {}
    ever: set[str] = set()
    for step, groups in enumerate(steps):
        ids, completions, right = rows(groups)
        similarity = visits.similarity(step, ids, completions)
        within = [jaccard(*pair) for group in groups for pair in itertools.combinations(group.rollouts, 2)]
        assert (similarity.intra_step, similarity.intra_pairs) == (pytest.approx(np.mean(within)), len(within))
        again = [(latest[group.problem.id], group) for group in groups if group.problem.id in latest]
        across = [jaccard(a, b) for old, new in again for a in old.rollouts for b in new.rollouts]
        assert similarity.inter_pairs == len(across)
        assert similarity.inter_step == pytest.approx(np.mean(across) if across else np.nan, nan_ok=True)
        visits.add(step, ids, completions, right)
        latest |= {group.problem.id: group for group in groups}
        ever |= {group.problem.id for group in groups if group.success_count}
        solved = {name for name, group in latest.items() if group.success_count}
        covered = visits.coverage()
        assert covered.now == pytest.approx(len(solved) / len(latest))
        assert covered.ever == pytest.approx(len(ever) / len(latest))
        assert covered.lost == pytest.approx(len(ever - solved) / len(latest))


@pytest.mark.parametrize("most_tokens", [1 << 26, 200, 100, 1])
@pytest.mark.parametrize("size", [ROLLOUTS, 12])
def test_a_pool_gives_the_state_that_saw_its_rollouts(most_tokens: int, size: int, tmp_path: Path):
    steps = make_steps(1, size=size)
    whole = added(Visits(0, most_tokens=most_tokens), steps)
    for cut in (0, 4, 7):
        visits = Visits(0, most_tokens=most_tokens)
        visits.load(written(tmp_path / str(cut), steps[:cut]))
        np.testing.assert_array_equal(added(visits, steps[cut:], cut), whole[cut:])


def test_tokens_are_bounded_and_the_oldest_visits_go_first():
    steps = make_steps(2)
    pairs = {most: [one[3] for one in added(Visits(0, most_tokens=most), steps)] for most in (1, 100, 1 << 26)}
    assert sum(pairs[1]) == 0
    assert 0 < sum(pairs[100]) < sum(pairs[1 << 26])


def test_extra_captures_are_no_visits(tmp_path: Path):
    steps = make_steps(3)
    pool = written(tmp_path, steps[:4])
    pool.write("extra-000004", make_steps(4, steps=1)[0], round=0, rollout_step=3, run_id="run")
    visits = Visits(0)
    visits.load(pool)
    np.testing.assert_array_equal(added(visits, steps[4:], 4), added(Visits(0), steps)[4:])
