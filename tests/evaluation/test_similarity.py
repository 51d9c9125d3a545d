"""n-gram similarity by hand, against a slow implementation, and sampled against exact."""

import itertools
import math

import numpy as np
import pytest

from rloop_lightning.evaluation import ngram_similarity
from rloop_lightning.evaluation.similarity import step_similarity


def slow(problem_ids, steps, completions, n):
    """Mean Jaccard over intra-step and inter-step pairs, and the numbers of pairs, with sets of tuples."""
    values = {True: [], False: []}
    for i, j in itertools.combinations(range(len(completions)), 2):
        if problem_ids[i] == problem_ids[j]:
            a, b = (
                {tuple(c[t : t + n]) for t in range(max(1, len(c) - n + 1))} for c in (completions[i], completions[j])
            )
            values[steps[i] == steps[j]].append(len(a & b) / len(a | b))
    means = [float(np.mean(values[kind])) if values[kind] else math.nan for kind in (True, False)]
    return means, [len(values[True]), len(values[False])]


def test_by_hand():
    # 2-grams: {12, 23}, {12, 24}, {12, 23}: Jaccard 1/3 within step 0, 1 and 1/3 across.
    result = ngram_similarity(["p"] * 3, [0, 0, 1], [np.array(x) for x in ([1, 2, 3], [1, 2, 4], [1, 2, 3])], n=2)
    assert result.intra_step == pytest.approx(1 / 3)
    assert result.inter_step == pytest.approx(2 / 3)
    assert (result.intra_pairs, result.inter_pairs) == (1, 2)


def test_pairs_are_of_one_problem_and_none_is_nan():
    result = ngram_similarity(["p", "q"], [0, 0], [np.arange(9)] * 2)
    assert math.isnan(result.intra_step)
    assert math.isnan(result.inter_step)
    assert (result.intra_pairs, result.inter_pairs) == (0, 0)


def make_rollouts(seed, rows=40):
    rng = np.random.default_rng(seed)
    completions = [rng.integers(0, 3, rng.integers(0, 9)) for _ in range(rows)]
    return rng.choice(["p", "q", "r"], rows).tolist(), rng.integers(0, 4, rows).tolist(), completions


@pytest.mark.parametrize("seed", range(5))
def test_is_what_the_slow_implementation_says(seed):
    rollouts = make_rollouts(seed)
    result = ngram_similarity(*rollouts, n=3, max_pairs=10**6)
    means, counts = slow(*rollouts, n=3)
    assert [result.intra_step, result.inter_step] == pytest.approx(means)
    assert [result.intra_pairs, result.inter_pairs] == counts


def test_drawn_pairs_estimate_the_mean_over_all_when_steps_are_uneven():
    rng = np.random.default_rng(0)
    steps = [0] * 30 + [1 + row // 3 for row in range(30)]
    completions = [rng.integers(0, 2 if step == 0 else 4, 6) for step in steps]
    rollouts = (["p"] * 60, steps, completions)
    exact = ngram_similarity(*rollouts, n=2, max_pairs=10**6)
    drawn = [ngram_similarity(*rollouts, n=2, max_pairs=25, seed=seed) for seed in range(200)]
    assert drawn[0] != drawn[1]
    assert (exact.intra_pairs, exact.inter_pairs) == (465, 1305)
    assert (drawn[0].intra_pairs, drawn[0].inter_pairs) == (465, 1305)
    assert np.mean([result.intra_step for result in drawn]) == pytest.approx(exact.intra_step, abs=0.02)
    assert np.mean([result.inter_step for result in drawn]) == pytest.approx(exact.inter_step, abs=0.01)


def test_the_same_seed_draws_the_same_pairs():
    rollouts = make_rollouts(1)
    assert ngram_similarity(*rollouts, max_pairs=5, seed=7) == ngram_similarity(*rollouts, max_pairs=5, seed=7)


def test_many_long_completions_are_what_the_slow_implementation_says():
    rng = np.random.default_rng(2)
    completions = [rng.integers(0, 6, rng.integers(1500, 2500)) for _ in range(24)]
    rollouts = (["p"] * 24, [row % 3 for row in range(24)], completions)
    result = ngram_similarity(*rollouts, n=4, max_pairs=10**6)
    means, counts = slow(*rollouts, n=4)
    assert [result.intra_step, result.inter_step] == pytest.approx(means, rel=1e-12)
    assert [result.intra_pairs, result.inter_pairs] == counts


def test_token_ids_of_any_size_and_order_are_told_apart():
    completions = [np.array(ids, dtype=np.int32) for ids in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [2**31 - 1, 0, 1])]
    result = ngram_similarity(["p"] * 4, [0] * 4, completions, n=3)
    assert result.intra_step == 0
    short = ngram_similarity(["p"] * 3, [0] * 3, [np.array(ids, dtype=np.int64) for ids in ([], [], [0])], n=3)
    assert short.intra_step == pytest.approx(1 / 3)  # both empty ones are equal, and differ from the third


def test_no_rollouts_and_one_have_no_pair():
    for rollouts in (([], [], []), (["p"], [0], [np.arange(5)])):
        result = ngram_similarity(*rollouts)
        assert math.isnan(result.intra_step)
        assert (result.intra_pairs, result.inter_pairs) == (0, 0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="one entry per rollout, got 2, 1 and 2"):
        ngram_similarity(["p", "p"], [0], [np.arange(5)] * 2)
    for bad in ({"n": 0}, {"max_pairs": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            ngram_similarity(["p"], [0], [np.arange(5)], **bad)


@pytest.mark.parametrize("seed", range(3))
def test_the_matrix_of_steps_is_what_the_slow_implementation_says(seed):
    problem_ids, steps, completions = make_rollouts(seed)
    matrix = step_similarity(problem_ids, steps, completions, 5, n=3)
    for first, second in itertools.product(range(5), repeat=2):
        rows = [row for row, step in enumerate(steps) if step in (first, second)]
        chosen = [[values[row] for row in rows] for values in (problem_ids, steps, completions)]
        (intra, inter), _ = slow(*chosen, n=3)
        assert matrix[first, second] == pytest.approx(intra if first == second else inter, nan_ok=True)
    assert np.isnan(matrix[4]).all()  # no rollout is of that step
