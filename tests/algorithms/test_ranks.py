"""Training in several gloo processes, with whole and with sharded weights, is that of one process."""

from __future__ import annotations

from functools import cache

import pytest
from builders import relative_difference
from rank_fits import Case, Trained, train, train_on_rank
from rank_pool import on_ranks

KL = {"kl_beta": 0.5, "kl_estimator": "k2"}

CASES = {
    "dense": Case("dense tied", settings={"updates_per_step": 2}),
    "a reference": Case("dense", settings=KL, rounds=2),
    "a reference in the reward": Case("dense", "kl", {**KL, "kl_in": "reward"}),
    "a mixture of experts": Case("moe checkpointed", "dapo", {"passes": 2, "updates_per_step": 1, "lr": 1e-4}),
    "replayed routing": Case("moe replayed", "minirl", {"updates_per_step": 2}),
    "an adapter with its reference": Case("lora checkpointed", settings=KL, rounds=2),
    "an adapter of experts": Case("lora moe", settings={**KL, "kl_reference": "base"}),
    "fine-tuning": Case("dense", "rft", {"kl_beta": 0.5, "rollouts_per_update": 8}),
    "fewer rows than ranks": Case("dense", rows=(3,)),
}


@cache
def alone(name: str) -> Trained:
    return train(CASES[name])


@pytest.mark.parametrize(
    ("name", "strategy", "world"),
    [
        *((name, "fsdp2", 2) for name in CASES),
        *((name, "ddp", 2) for name in ("a reference", "a reference in the reward", "replayed routing")),
        *((name, "fsdp2", 3) for name in ("dense", "a reference", "fewer rows than ranks")),
        ("fewer rows than ranks", "ddp", 3),
        ("dense", "hsdp", 4),
    ],
)
def test_training_is_that_of_one_process(name, strategy, world):
    expected = alone(name)
    for found in on_ranks(world, train_on_rank, CASES[name], strategy, world):
        assert len(found.gradients) == len(expected.gradients)
        for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
            assert relative_difference(ours, theirs) < 1e-4
        before = expected.weights[0]
        for ours, theirs in zip(found.weights, expected.weights, strict=True):
            assert relative_difference(ours, theirs) < 1e-5
            assert relative_difference(ours - before, theirs - before) < 1e-3 or ours is found.weights[0]
        for ours, theirs in zip(found.metrics, expected.metrics, strict=True):
            assert ours == {key: pytest.approx(value, rel=1e-3, abs=1e-4) for key, value in theirs.items()}
        assert relative_difference(found.losses, expected.losses) < 1e-3
        assert relative_difference(found.logprobs, expected.logprobs) < 1e-4
