"""pass@k against numbers worked out by hand and against every way to draw k completions."""

import itertools
import math

import pytest
import torch

from rloop_lightning.evaluation import PassAtK, pass_at_k


def test_numbers_worked_out_by_hand():
    # n = 5, k = 2: C(5, 2) = 10 pairs, of which C(5 - c, 2) hold no success: 10, 6, 3, 1, 0, 0.
    result = pass_at_k(torch.arange(6), samples=5, k=2)
    torch.testing.assert_close(result, torch.tensor([0, 0.4, 0.7, 0.9, 1, 1], dtype=torch.float64))


@pytest.mark.parametrize("samples", range(1, 8))
def test_is_the_share_of_all_draws_that_hold_a_success(samples):
    for k in range(1, samples + 1):
        draws = list(itertools.combinations(range(samples), k))
        share = [sum(min(draw) < c for draw in draws) / len(draws) for c in range(samples + 1)]
        result = pass_at_k(torch.arange(samples + 1), samples, k)
        torch.testing.assert_close(result, torch.tensor(share, dtype=torch.float64))


def test_large_counts_neither_overflow_nor_lose_digits():
    result = pass_at_k(torch.tensor([1, 3]), samples=4096, k=1024)
    exact = [1 - math.comb(4096 - c, 1024) / math.comb(4096, 1024) for c in (1, 3)]
    torch.testing.assert_close(result, torch.tensor(exact, dtype=torch.float64), rtol=1e-12, atol=0)


def test_k_beyond_the_samples_is_an_error_that_names_both():
    with pytest.raises(ValueError, match="k = 8 and samples = 4"):
        pass_at_k(torch.tensor([1]), samples=4, k=8)


@pytest.mark.parametrize("count", [-1, 5])
def test_a_count_out_of_range_is_an_error(count):
    with pytest.raises(ValueError, match="samples = 4"):
        pass_at_k(torch.tensor([count]), samples=4, k=1)


def test_metric_is_the_mean_over_the_problems_of_all_updates():
    metric = PassAtK(ks=(2, 1))
    metric.update(torch.tensor([0, 5]), samples=5)
    metric.update(torch.tensor([1]), samples=5)
    result = metric.compute()
    assert list(result) == ["pass@1", "pass@2"]
    assert result["pass@1"].item() == pytest.approx((0 + 1 + 0.2) / 3)
    assert result["pass@2"].item() == pytest.approx((0 + 1 + 0.4) / 3)


def test_ranks_with_different_numbers_of_problems_are_summed():
    """What DDP does at compute: gather every state, stack it, and reduce it."""
    ranks = [PassAtK(ks=(1,)) for _ in range(2)]
    ranks[0].update(torch.tensor([4, 4, 4]), samples=4)
    ranks[1].update(torch.tensor([0]), samples=4)
    both = PassAtK(ks=(1,))
    both.update(torch.tensor([], dtype=torch.long), samples=4)
    for state, reduce in both._reductions.items():
        setattr(both, state, reduce(torch.stack([getattr(rank, state) for rank in ranks])))
    assert both.compute()["pass@1"].item() == pytest.approx(0.75)


def test_reset_forgets():
    metric = PassAtK(ks=(1,))
    metric.update(torch.tensor([4]), samples=4)
    metric.reset()
    metric.update(torch.tensor([0]), samples=4)
    assert metric.compute()["pass@1"].item() == 0


@pytest.mark.parametrize("ks", [(), (0,), (1, -2)])
def test_bad_ks_are_refused(ks):
    with pytest.raises(ValueError, match="ks must be"):
        PassAtK(ks=ks)
