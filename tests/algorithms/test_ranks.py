"""Training in several gloo processes, with whole and with sharded weights, is that of one process."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from builders import random_batch, relative_difference
from hypothesis import given
from hypothesis import strategies as st
from rank_fits import Case, Trained, resume_on_rank, train, train_on_rank
from rank_pool import on_ranks
from sharded_work import build, vector

from rloop_lightning.algorithms.shares import share

KL = {"kl_beta": 0.5, "kl_estimator": "k2"}

CASES = {
    "dense": Case("dense tied", settings={"updates_per_step": 2}),
    "a reference": Case("dense", settings=KL, rounds=2),
    "a reference in the reward": Case("dense", "grpo", {**KL, "kl_in": "reward"}),
    "a mixture of experts": Case("moe checkpointed", "dapo", {"passes": 2, "updates_per_step": 1, "lr": 1e-4}),
    "replayed routing": Case("moe replayed", "minirl", {"updates_per_step": 2}),
    "an adapter with its reference": Case("lora checkpointed", settings=KL, rounds=2),
    "an adapter of experts": Case("lora moe", settings={**KL, "kl_reference": "base"}),
    "fine-tuning": Case("dense tied", "rft", {"kl_beta": 0.5, "rollouts_per_update": 8}),
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


@pytest.mark.parametrize("kind", ["dense", "lora"])
def test_bfloat16_weights_move_as_float32_ones_on_average(kind):
    """Each update is smaller than the distance of most weights to their neighbours."""
    case = Case(f"{kind} bfloat16", tokens=24)
    first, second = on_ranks(2, train_on_rank, case, "fsdp2", 2)
    assert torch.equal(first.weights[1], second.weights[1])
    assert relative_difference(first.gradients[0], train(case).gradients[0]) < 0.03
    wide = train(Case(kind, tokens=24)).weights
    ours, theirs = ((weights[1] - weights[0]).double() for weights in (first.weights, wide))
    assert float(ours @ theirs / theirs.square().sum()) == pytest.approx(1, abs=0.05)


def test_float32_weights_under_mixed_precision():
    case = Case("dense", precision="bf16-mixed")
    expected = train(case)
    for found in on_ranks(2, train_on_rank, case, "fsdp2", 2):
        assert relative_difference(found.gradients[0], expected.gradients[0]) < 0.01


@pytest.mark.parametrize("kind", ["dense", "dense bfloat16", "lora"])
def test_a_resume_of_shards_gives_the_same_bits(tmp_path, kind):
    for whole, resumed in on_ranks(2, resume_on_rank, kind, 2, tmp_path / "checkpoint"):
        assert torch.equal(whole, resumed)
        assert float((whole.float() - vector(build(kind)).float()).norm()) > 0


LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=20)


@given(lengths=LENGTHS, prompts=st.integers(1, 20), world=st.integers(1, 6))
def test_shares_are_about_equal_in_tokens(lengths, prompts, world):
    lengths = [(lengths[row % prompts % len(lengths)][0], completion) for row, (_, completion) in enumerate(lengths)]
    batch = replace(random_batch(lengths), prompts=torch.arange(len(lengths)) % prompts)
    shares = [share(batch, rank, world).tolist() for rank in range(world)]
    assert sorted(row for own in shares for row in own) == list(range(len(batch)))
    assert all(own == sorted(own) for own in shares)
    split = 0
    for number in set(batch.prompts.tolist()):
        rows = {row for row in range(len(batch)) if batch.prompts[row] == number}
        split += sum(not rows.isdisjoint(own) for own in shares) - 1
    assert split <= world - 1
    tokens = sum(batch.completion_lengths.tolist()) + sum(
        int(batch.prompt_lengths[batch.prompts == number][0]) for number in set(batch.prompts.tolist())
    )
    for own in shares:
        held = sum(int(batch.completion_lengths[row]) for row in own)
        assert held <= tokens / world + int(batch.lengths.max())
