"""Policies whose weights are sharded over gloo processes by FSDP2 compute what one process computes."""

from __future__ import annotations

import pytest
import torch
from builders import random_batch, relative_difference
from rank_pool import on_ranks
from sharded_work import backward, build, generate, gradient_of, load, push, save, spoil, vector

KINDS = [
    *("dense", "dense tied", "dense checkpointed", "dense padded", "dense GPTNeoX checkpointed"),
    "dense Gemma2",  # with a soft cap behind its head
    *("moe", "moe checkpointed", "moe Mixtral"),
    *("lora", "lora checkpointed", "lora moe", "lora moe checkpointed"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_one_process(kind):
    expected = backward(build(kind), random_batch())
    found = on_ranks(2, gradient_of, kind, 2, 1, 40, None)
    assert torch.equal(*found)
    assert relative_difference(found[0], expected) < 1e-5


@pytest.mark.parametrize("rows", [None, [3], [3, 0]])
def test_three_ranks_of_which_some_have_an_empty_share(rows):
    batch = random_batch() if rows is None else random_batch().select(torch.tensor(rows))
    expected = backward(build("dense tied"), batch)
    for found in on_ranks(3, gradient_of, "dense tied", 3, 1, 10, rows):
        assert relative_difference(found, expected) < 1e-5


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("kind", "merge"),
    [
        ("dense", False),
        ("dense tied bfloat16", False),
        ("moe", False),
        ("lora", False),
        ("lora", True),
        ("lora bfloat16", True),
        ("lora moe", True),
    ],
)
def test_a_saved_folder_has_the_bytes_of_one_process(tmp_path, kind, merge):
    build(kind).save(tmp_path / "one", merge=merge)
    on_ranks(2, save, kind, 2, tmp_path / "two", merge)
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.parametrize("kind", ["dense tied", "moe", "lora"])
def test_a_folder_is_read_by_rank_0_alone(tmp_path, kind):
    policy = build(kind)
    policy.save(tmp_path / "saved")
    for found in on_ranks(2, load, kind, 2, tmp_path / "saved"):
        assert torch.equal(found, vector(policy))


@pytest.mark.parametrize("kind", ["dense tied", "moe", "lora"])
def test_the_torch_engine_generates_with_a_whole_copy(kind):
    expected = generate(0, kind, 1, 2)
    assert expected[0] != expected[1]
    for found in on_ranks(2, generate, kind, 2, 2):
        assert found == expected


@pytest.mark.parametrize("kind", ["dense tied", "moe", "lora moe"])
def test_weights_are_pushed_one_by_one_as_they_were_described(kind):
    expected, told, _ = push(0, kind, 1)
    assert [name for name, _, _ in told] == list(expected)
    prints = []
    for pushed, described, (before, after, again) in on_ranks(2, push, kind, 2):
        assert described == told == [(name, weight.dtype, weight.shape) for name, weight in pushed.items()]
        for name, weight in pushed.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-6)
        assert after == again != before
        prints.append((before, after))
    assert prints[0] == prints[1]


def test_a_weight_that_is_not_finite_is_named_on_all_ranks():
    expected = "the policy's weight model.layers.1.mlp.up_proj.weight holds NaN or infinite values"
    assert on_ranks(2, spoil, "dense", 2) == [expected, expected]


def test_replicated_shards_are_saved_and_loaded(tmp_path):
    policy = build("dense tied")
    policy.save(tmp_path / "one")
    on_ranks(4, save, "dense tied", 4, tmp_path / "four", False, 2)
    assert files(tmp_path / "four") == files(tmp_path / "one")
    for found in on_ranks(4, load, "dense tied", 4, tmp_path / "one", 2):
        assert torch.equal(found, vector(policy))
