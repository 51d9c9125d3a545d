"""The gradient of every algorithm and consolidation depends on its rollouts alone, not on how they are cut.

Neither on the size of micro-batches, nor on the order of rows, nor on the number of processes.
"""

from functools import cache

import killing  # noqa: F401 -- its fork server has the package imported
import pytest
import torch
from builders import RankData, fit, make_policy, relative_difference
from every_algorithm import (
    CASES,
    GROUPS,
    REPLAYED,
    WITHOUT_LOSS,
    EveryAlgorithm,
    gradient_and_metrics,
    make_batch,
    make_case,
)
from lightning.pytorch.strategies import DDPStrategy

from rloop_lightning.algorithms import ALGORITHMS, CONSOLIDATIONS
from rloop_lightning.algorithms.shares import share


@cache
def whole(case):
    """All rows at once, in order, in one process."""
    return gradient_and_metrics(case, make_batch())


def same_metrics(actual, expected):
    assert actual.keys() == expected.keys()
    assert actual == {name: pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in expected.items()}


def test_every_registered_class_is_here():
    assert {type(make_case(case)).__name__ for case in CASES} == {
        path.rpartition(".")[2] for registry in (ALGORITHMS, CONSOLIDATIONS) for path in registry.values()
    } - {"Average"}  # which has no gradient


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_do_not_change_the_gradient(case):
    batch, (reference, metrics) = make_batch(), whole(case)
    assert float(reference.norm()) > 0.01
    cuts = [len(list(make_policy(max_tokens=tokens).micro_batches(batch))) for tokens in (1, 40)]
    assert cuts == [len(batch), 3]
    for tokens in (1, 40):
        gradient, cut = gradient_and_metrics(case, batch, max_tokens=tokens)
        assert relative_difference(gradient, reference) < 1e-5
        same_metrics(cut, metrics)


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_rows_does_not_change_the_gradient(case):
    """The groups backwards, and the rows of each of them, too."""
    gradient, metrics = gradient_and_metrics(
        case, make_batch().select(torch.arange(len(GROUPS)).flip(0)), max_tokens=40
    )
    assert relative_difference(gradient, whole(case)[0]) < 1e-5
    same_metrics(metrics, whole(case)[1])


def test_the_number_of_processes_does_not_change_the_gradient(tmp_path):
    """Two gloo processes that differ in rows, tokens and micro-batches."""
    batch = make_batch()
    shares = [batch.select(share(batch, rank, 2)) for rank in (0, 1)]
    assert len({int(own.loss_mask.sum()) for own in shares}) == 2
    policy = make_policy(max_tokens=44)
    assert len({len(list(policy.micro_batches(own))) for own in shares}) == 2
    strategy = DDPStrategy(process_group_backend="gloo", start_method="forkserver")
    fit(EveryAlgorithm(tmp_path), policy, RankData([batch, batch]), strategy=strategy, devices=2)
    for case in CASES:
        gradients = [torch.load(tmp_path / f"{case} gradient {rank}.pt") for rank in (0, 1)]
        metrics = [torch.load(tmp_path / f"{case} metrics {rank}.pt") for rank in (0, 1)]
        expected = {name: value for name, value in whole(case)[1].items() if name in metrics[0]}
        assert torch.equal(*gradients), case
        assert relative_difference(gradients[0], whole(case)[0]) < 1e-5, case
        for ours in metrics:
            same_metrics({name: ours[name] for name in expected}, expected)
        assert "train/loss" in expected


def test_the_batch_is_worth_the_test():
    """Rows that carry no loss, that are replayed, and ratios on both sides of every clip."""
    batch = make_batch()
    assert not batch.loss_mask[WITHOUT_LOSS].any()
    assert batch.replayed.nonzero().flatten().tolist() == list(REPLAYED)
    for case, (_, name, _) in CASES.items():
        metrics = whole(case)[1]
        if name in ALGORITHMS:
            assert 0.05 < metrics["policy/clip_fraction"] < 0.9, case
            assert metrics["policy/engine_kl_nats"] > 0.01
        if "k1" in case or "k2" in case or "k3" in case:
            assert abs(metrics["policy/kl_nats"]) > 0.01
