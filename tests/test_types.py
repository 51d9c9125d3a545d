"""Batches: what collate lays out, and how a batch is cut and moved."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from builders import make_group, make_rollout, random_batch
from hypothesis import given
from hypothesis import strategies as st

from rloop_lightning.batching import collate
from rloop_lightning.types import RolloutStep


def small_batch(**changes):
    rollouts = [
        make_rollout("a", (6, 1), prompt=(3, 4, 5), sampling_logprobs=(-0.5, -0.25)),
        make_rollout("b", (7, 8, 9, 1), prompt=(2,), sampling_logprobs=(-1, -2, -3, -4)),
    ]
    return collate(rollouts, [0.5, -1.5], **changes)


def test_collate_lays_out_rows():
    batch = small_batch(temperature=0.7)
    assert batch.input_ids.tolist() == [[3, 4, 5, 6, 1], [2, 7, 8, 9, 1]]
    assert batch.prompts.tolist() == [0, 1]
    assert batch.prompt_lengths.tolist() == [3, 1]
    assert batch.completion_lengths.tolist() == [2, 4]
    assert batch.lengths.tolist() == [5, 5]
    assert batch.sampling_logprobs.tolist() == [[-0.5, -0.25, 0, 0], [-1, -2, -3, -4]]
    assert batch.loss_mask.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.advantages.tolist() == [0.5, -1.5]
    assert batch.old_logprobs is None
    assert batch.temperature == 0.7
    assert len(batch) == 2


def test_rows_of_the_same_prompt_have_the_same_number():
    prompts = [(3, 4), (3,), (3, 4), (4, 3), (3,)]
    batch = collate([make_rollout("a", prompt=prompt) for prompt in prompts], [0.0] * len(prompts))
    assert batch.prompts.tolist() == [0, 1, 0, 2, 1]
    assert batch.select(torch.tensor([4, 3, 1])).prompts.tolist() == [1, 2, 1]


def test_a_row_that_carries_no_loss_keeps_its_completion():
    batch = small_batch(in_loss=[True, False])
    assert batch.loss_mask.tolist() == [[True, True, False, False], [False] * 4]
    assert batch.completion_mask.tolist() == [[True, True, False, False], [True] * 4]


def test_collate_pads_on_the_right():
    batch = collate(
        [make_rollout(completion=(6,), prompt=(3,)), make_rollout(completion=(7, 8), prompt=(4, 5))], [0, 0]
    )
    assert batch.input_ids.tolist() == [[3, 6, 0, 0], [4, 5, 7, 8]]


def test_select_takes_rows_in_order_and_trims():
    batch = replace(random_batch(((3, 5), (1, 9), (6, 1), (4, 2))), old_logprobs=torch.arange(36.0).view(4, 9))
    part = batch.select(torch.tensor([3, 2]))
    assert part.input_ids.tolist() == [batch.input_ids[3, :7].tolist(), batch.input_ids[2, :7].tolist()]
    assert part.prompt_lengths.tolist() == [4, 6]
    assert part.completion_lengths.tolist() == [2, 1]
    assert part.sampling_logprobs.tolist() == [batch.sampling_logprobs[i, :2].tolist() for i in (3, 2)]
    assert part.old_logprobs.tolist() == [[27.0, 28.0], [18.0, 19.0]]
    assert part.loss_mask.tolist() == [[True, True], [True, False]]
    assert part.advantages.tolist() == [batch.advantages[i].item() for i in (3, 2)]


def with_experts(rollout, first, layers=3, top_k=2, dtype=np.uint8):
    """A record that counts on from `first`."""
    tokens = len(rollout.prompt_ids) + rollout.length - 1
    experts = first + np.arange(tokens * layers * top_k).reshape(tokens, layers, top_k)
    return replace(rollout, routed_experts=experts.astype(dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_experts_stand_at_all_tokens_but_the_last_and_are_trimmed_with_their_rows(dtype):
    long, short = make_rollout("a", (6, 7, 8, 1), prompt=(3, 4)), make_rollout("b", (1,), prompt=(3, 4, 5))
    rollouts = [with_experts(long, 0, dtype=dtype), with_experts(short, 100, dtype=dtype)]
    batch = collate(rollouts, [0, 0])
    assert batch.routed_experts.shape == (2, 6, 3, 2)
    assert batch.routed_experts.dtype == torch.from_numpy(rollouts[0].routed_experts).dtype
    assert batch.routed_experts[0, :5].tolist() == rollouts[0].routed_experts.tolist()
    assert batch.routed_experts[1, :3].tolist() == rollouts[1].routed_experts.tolist()
    assert not batch.routed_experts[0, 5:].any()
    assert not batch.routed_experts[1, 3:].any()
    batch = replace(batch, old_routed_experts=batch.routed_experts + 1)
    part = batch.select(torch.tensor([1]))
    assert part.routed_experts.tolist() == batch.routed_experts[[1], :4].tolist()
    assert part.old_routed_experts.tolist() == (batch.routed_experts[[1], :4] + 1).tolist()
    (_, first), (_, second) = batch.micro_batches(6)
    assert (first.routed_experts.shape[:2], second.routed_experts.shape[:2]) == ((1, 6), (1, 4))
    assert batch.to("meta").routed_experts.is_meta
    assert batch.to("meta").old_routed_experts.is_meta


def test_without_experts_a_batch_has_none():
    assert random_batch().routed_experts is None
    assert random_batch().select(torch.tensor([0])).routed_experts is None


@pytest.mark.parametrize("cut", [slice(0, 0), slice(0, 2), None])
def test_experts_of_some_rollouts_or_of_other_lengths_are_refused(cut):
    first, second = with_experts(make_rollout(), 0), with_experts(make_rollout(), 0)
    spoilt = replace(second, routed_experts=None if cut is None else second.routed_experts[cut])
    with pytest.raises(ValueError, match="either all rollouts of a batch or none come with experts, of every token"):
        collate([first, spoilt], [0, 0])


lengths = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 12)), min_size=1, max_size=12)


@given(lengths, st.integers(1, 80))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, max_tokens):
    batch = random_batch(lengths)
    seen, previous = [], None
    for rows, micro in batch.micro_batches(max_tokens):
        assert micro.input_ids.numel() <= max_tokens or len(micro) == 1
        assert micro.input_ids.shape[1] == int(micro.lengths.max())
        assert micro.loss_mask.shape[1] == int(micro.completion_lengths.max())
        for row, number in enumerate(rows.tolist()):
            length, completion = sum(lengths[number]), lengths[number][1]
            assert micro.input_ids[row, :length].tolist() == batch.input_ids[number, :length].tolist()
            assert micro.loss_mask[row].sum() == completion
            assert micro.advantages[row] == batch.advantages[number]
            assert previous is None or previous >= length
            previous = length
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_micro_batches_fill_the_budget():
    # lengths 8, 10, 7, 16: longest first 16, 10, 8, 7. Within 20 tokens: [16], [10 + 8 padded to 10], [7].
    batch = random_batch(((3, 5), (1, 9), (6, 1), (4, 12)))
    assert [rows.tolist() for rows, _ in batch.micro_batches(20)] == [[3], [1, 0], [2]]
    assert [rows.tolist() for rows, _ in batch.micro_batches(64)] == [[3, 1, 0, 2]]
    assert [rows.tolist() for rows, _ in batch.micro_batches(1)] == [[3], [1], [0], [2]]


def test_to_moves_every_tensor():
    """On the `meta` device, which every machine has."""
    batch = replace(random_batch(), old_logprobs=torch.zeros(8, 12))
    moved = batch.to("meta")
    tensors = [f.name for f in fields(batch) if isinstance(getattr(batch, f.name), torch.Tensor)]
    assert len(tensors) == 10
    assert all(getattr(moved, name).is_meta for name in tensors)
    assert not any(getattr(batch, name).is_meta for name in tensors)
    step = RolloutStep(3, (make_group(make_rollout()),), batch, {"x": 1.0})
    assert step.to("meta").batch.input_ids.is_meta
    assert (step.to("meta").index, step.to("meta").groups, step.to("meta").metrics) == (3, step.groups, {"x": 1.0})
    assert random_batch().to("meta").old_logprobs is None


def test_success_count_and_length():
    group = make_group(make_rollout(reward=1.0), make_rollout(reward=0.99), make_rollout(reward=2.0))
    assert group.success_count == 2
    assert make_rollout(completion=(1, 2, 3, 4)).length == 4


def test_collate_keeps_dtypes():
    batch = collate([make_rollout()], np.array([0.1], dtype=np.float64))
    assert (batch.input_ids.dtype, batch.advantages.dtype) == (torch.int64, torch.float32)
    assert (batch.sampling_logprobs.dtype, batch.loss_mask.dtype) == (torch.float32, torch.bool)
    assert batch.advantages.tolist() == [pytest.approx(0.1)]
