"""maj@k by hand, against a slow implementation, and against the expectation over all draws."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from rloop_lightning.evaluation import MajorityAtK, answer_groups, majority_at_k


def wins(groups, right):
    """Whether the majority of some rollouts is right, with loops."""
    votes = Counter(group for group in groups if group >= 0)
    if not votes:
        return False
    most = max(votes.values())
    return next(bool(r) for group, r in zip(groups, right, strict=True) if group >= 0 and votes[group] == most)


def slow(groups, right, k):
    blocks = range(0, len(groups[0]) - k + 1, k)
    return [np.mean([wins(g[b : b + k], r[b : b + k]) for b in blocks]) for g, r in zip(groups, right, strict=True)]


def test_by_hand():
    groups = np.array([[0, 1, 1, 0, 0], [0, 1, 2, 2, -1], [-1, -1, -1, 0, 0]])
    right = np.array([[0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 1]], dtype=bool)
    assert majority_at_k(groups, right, 5).tolist() == [0, 0, 1]
    assert majority_at_k(groups, right, 3).tolist() == [1, 1, 0]  # the first three; the first of three equals; no vote
    assert majority_at_k(groups, right, 2).tolist() == [0.5, 0.5, 0.5]  # ties go to the first seen of a block
    assert majority_at_k(groups, right, 1).tolist() == [0.4, 0.2, 0.4]


@pytest.mark.parametrize("seed", range(4))
def test_is_what_the_slow_implementation_says(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(-1, 4, size=(30, 12))
    right_group = rng.integers(0, 4, size=(30, 1))
    right = groups == right_group
    for k in range(1, 13):
        assert majority_at_k(groups, right, k).tolist() == pytest.approx(slow(groups, right, k))


def test_is_unbiased_over_the_orders_of_rollouts():
    groups, right = [0, 0, 1, 2, 1, 1], [True, True, False, False, False, False]
    every = [wins([groups[i] for i in draw], [right[i] for i in draw]) for draw in itertools.permutations(range(6), 3)]
    orders = np.array(list(itertools.permutations(range(6))))
    estimates = majority_at_k(np.array(groups)[orders], np.array(right)[orders], 3)
    assert estimates.mean() == pytest.approx(np.mean(every))


def test_answers_are_grouped_by_key_or_by_a_callable():
    assert answer_groups(["1/2", "0.5", None, "1/2"]).tolist() == [0, 1, -1, 0]
    value = {"1/2": 0.5, "0.5": 0.5, "2": 2}
    assert answer_groups(["1/2", "2", "0.5"], equal=lambda a, b: value[a] == value[b]).tolist() == [0, 1, 0]
    assert answer_groups([]).tolist() == []


def test_k_out_of_range_and_other_shapes_are_refused():
    groups = np.zeros((2, 4), dtype=int)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k = {k} and n = 4"):
            majority_at_k(groups, groups == 0, k)
    with pytest.raises(ValueError, match=r"\[2, 4\] and \[2, 3\]"):
        majority_at_k(groups, np.zeros((2, 3)), 1)
    assert majority_at_k(np.zeros((0, 4), dtype=int), np.zeros((0, 4)), 2).tolist() == []


def test_metric_is_the_mean_over_all_problems_of_all_ranks():
    rng = np.random.default_rng(0)
    groups = rng.integers(-1, 3, size=(9, 8))
    right = groups == 1
    ranks = [MajorityAtK(ks=(4, 2)) for _ in range(2)]
    ranks[0].update(groups[:3], right[:3])
    ranks[0].update(groups[3:4], right[3:4])
    ranks[1].update(groups[4:], right[4:])
    both = MajorityAtK(ks=(4, 2))
    for state, reduce in both._reductions.items():
        setattr(both, state, reduce(torch.stack([getattr(rank, state) for rank in ranks])))
    both._update_count = 1
    result = both.compute()
    assert list(result) == ["maj@2", "maj@4"]
    for k in (2, 4):
        assert result[f"maj@{k}"].item() == pytest.approx(np.mean(slow(groups, right, k)))


@pytest.mark.parametrize("ks", [(), (0,)])
def test_bad_ks_are_refused(ks):
    with pytest.raises(ValueError, match="ks must be"):
        MajorityAtK(ks=ks)
