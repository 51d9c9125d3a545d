"""Packed rollouts against a construction token by token, and what they see of each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import gradients, make_policy, make_rollout, relative_difference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rloop_lightning.model import packing
from rloop_lightning.model.packing import PackedBatch, pack, packed_micro_batches
from rloop_lightning.types import RolloutBatch, collate

# (which prompt, completion length) of each row; the rows of a prompt do not all stand together.
ROWS = ((0, 5), (1, 9), (0, 1), (2, 12), (1, 2), (0, 7), (3, 3), (1, 4))


def shared_batch(rows: tuple[tuple[int, int], ...] = ROWS, *, seed: int = 0, temperature: float = 0.9) -> RolloutBatch:
    """Rows of random tokens, those with the same prompt number with the same prompt."""
    rng = np.random.default_rng(seed)
    prompts = {number: rng.integers(2, 25, 1 + (5 * number + seed) % 8) for number, _ in rows}
    rollouts = [make_rollout(prompt=prompts[number], completion=rng.integers(2, 25, length)) for number, length in rows]
    return collate(rollouts, rng.normal(size=len(rows)), temperature=temperature)


ragged_rows = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 12)), min_size=1, max_size=12).map(tuple)


def slow_sequences(batch: RolloutBatch) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """Distinct prompts by their number, each row's prompt among them, completions."""
    prompts: dict[int, list[int]] = {}
    completions = []
    for row, number in enumerate(batch.prompts.tolist()):
        start, end = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        prompts[number] = batch.input_ids[row, :start].tolist()
        completions.append(batch.input_ids[row, start:end].tolist())
    numbers = sorted(prompts)
    return [prompts[n] for n in numbers], [numbers.index(n) for n in batch.prompts.tolist()], completions


@given(ragged_rows, st.integers(0, 3))
def test_packed_equals_a_construction_token_by_token(rows: tuple[tuple[int, int], ...], seed: int) -> None:
    batch = shared_batch(rows, seed=seed)
    packed = pack(batch)
    prompts, owners, completions = slow_sequences(batch)
    input_ids = [token for prompt in prompts for token in prompt]
    positions = [place for prompt in prompts for place in range(len(prompt))]
    predicting, targets = [], []
    for owner, completion in zip(owners, completions, strict=True):
        last_of_prompt = sum(map(len, prompts[: owner + 1])) - 1
        for place, token in enumerate(completion):
            predicting.append(len(input_ids) - 1 if place else last_of_prompt)
            targets.append(token)
            input_ids.append(token)
            positions.append(len(prompts[owner]) + place)
    assert packed.input_ids.tolist() == input_ids
    assert packed.positions.tolist() == positions
    assert packed.predicting.tolist() == predicting
    assert packed.targets.tolist() == targets


def seen_by_token(packed: PackedBatch) -> list[list[int]]:
    """The tokens of the packed row that each token attends to, read from the blocks."""
    queries, seen = [], []
    for block in packed.blocks:
        rows, length, width = block.shape
        keys = block.keys.view(rows, width)
        for row in range(rows):
            for place in range(length):
                queries.append(int(block.queries[row * length + place]))
                seen.append(keys[row][block.sees[row, place]].tolist())
    found = packed.places.tolist()
    assert [queries[place] for place in found] == list(range(len(found)))
    return [seen[place] for place in found]


@given(ragged_rows, st.integers(0, 3))
def test_a_token_sees_its_prompt_and_its_completion_up_to_itself(rows: tuple[tuple[int, int], ...], seed: int) -> None:
    batch = shared_batch(rows, seed=seed)
    prompts, owners, completions = slow_sequences(batch)
    starts = np.cumsum([0, *map(len, prompts)]).tolist()
    expected = [
        list(range(starts[prompt], starts[prompt] + place + 1))
        for prompt in range(len(prompts))
        for place in range(len(prompts[prompt]))
    ]
    for owner, completion in zip(owners, completions, strict=True):
        prompt = list(range(starts[owner], starts[owner + 1]))
        first = len(expected)
        expected += [prompt + list(range(first, first + place + 1)) for place in range(len(completion))]
    assert seen_by_token(pack(batch)) == expected


@given(ragged_rows, st.integers(1, 80))
def test_micro_batches_hold_every_row_once_within_the_budget(rows: tuple[tuple[int, int], ...], budget: int) -> None:
    batch = shared_batch(rows)
    order = []
    for numbers, micro in packed_micro_batches(batch, budget):
        assert len(pack(micro).input_ids) <= budget or len(micro) == 1
        assert micro.advantages.tolist() == batch.advantages[numbers].tolist()
        assert micro.input_ids.shape[1] == int(micro.lengths.max())
        order += numbers.tolist()
    assert sorted(order) == list(range(len(rows)))
    prompts = batch.prompts[order].tolist()
    assert prompts == sorted(prompts)  # so that rows of one prompt stand together


def test_micro_batches_count_a_prompt_once() -> None:
    # Prompts of 1, 6, 3 and 8 tokens. Prompt 0 with completions of 5, 1 and 7: 14 tokens. Prompt 1 with 9, 2 and 4: 21.
    batch = shared_batch()
    assert [rows.tolist() for rows, _ in packed_micro_batches(batch, 14)] == [[0, 2, 5], [1], [4, 7], [3], [6]]
    assert [rows.tolist() for rows, _ in packed_micro_batches(batch, 35)] == [[0, 2, 5, 1, 4, 7], [3, 6]]
    assert [rows.tolist() for rows, _ in packed_micro_batches(batch, 1)] == [[0], [2], [5], [1], [4], [7], [3], [6]]


# --- attention


def gradient(policy, batch: RolloutBatch) -> Tensor:
    policy.zero_grad()
    (policy.logprobs(batch).logprobs * batch.advantages[:, None]).sum().backward()
    return gradients(policy)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_both_kinds_of_attention_give_the_same(monkeypatch: pytest.MonkeyPatch, key_heads: int) -> None:
    policy, batch = make_policy("Llama", num_key_value_heads=key_heads), shared_batch()
    calls = []
    kernel = packing.scaled_dot_product_attention

    def counted(*args: Tensor, **kwargs: Tensor) -> Tensor:
        calls.append(args)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(packing, "scaled_dot_product_attention", counted)
    products, products_gradient = policy.logprobs(batch).logprobs, gradient(policy, batch)
    assert calls == []
    monkeypatch.setattr(packing, "_LONGEST_FOR_PRODUCTS", 0)
    fused, fused_gradient = policy.logprobs(batch).logprobs, gradient(policy, batch)
    assert len(calls) == 2 * 2 * len(pack(batch).blocks)  # calls of logprobs, layers
    torch.testing.assert_close(fused, products, rtol=1e-5, atol=1e-6)
    assert relative_difference(fused_gradient, products_gradient) < 1e-6


@given(rows=ragged_rows)
@settings(max_examples=20, deadline=None)
def test_a_packed_batch_has_the_logprobs_of_its_rows_alone(rows: tuple[tuple[int, int], ...]) -> None:
    policy, batch = make_policy(), shared_batch(rows)
    whole = policy.logprobs(batch).logprobs
    for row in range(len(batch)):
        alone = policy.logprobs(batch.select(torch.tensor([row]))).logprobs
        torch.testing.assert_close(whole[row : row + 1, : alone.shape[1]], alone, rtol=1e-5, atol=1e-5)


def changed_rows(change: Callable[[RolloutBatch], RolloutBatch], longest_for_products: int) -> list[int]:
    """The rows whose logprobs a change of the batch changes."""
    policy, batch = make_policy(), shared_batch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_LONGEST_FOR_PRODUCTS", longest_for_products)
        before, after = policy.logprobs(batch).logprobs, policy.logprobs(change(batch)).logprobs
    return ((before - after).abs().amax(1) > 1e-5).nonzero().flatten().tolist()


@pytest.mark.parametrize("longest_for_products", [0, 512])
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_rollouts_do_not_see_each_other(row: int, longest_for_products: int) -> None:
    def other_completion(batch: RolloutBatch) -> RolloutBatch:
        input_ids = batch.input_ids.clone()
        start, end = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        input_ids[row, start:end] = (input_ids[row, start:end] + 1) % 25
        return replace(batch, input_ids=input_ids)

    assert changed_rows(other_completion, longest_for_products) == [row]


@pytest.mark.parametrize("longest_for_products", [0, 512])
@pytest.mark.parametrize("prompt", [0, 1, 2, 3])
def test_a_prompt_is_seen_by_its_own_rollouts_alone(prompt: int, longest_for_products: int) -> None:
    members = [row for row, (number, _) in enumerate(ROWS) if number == prompt]

    def other_prompt(batch: RolloutBatch) -> RolloutBatch:
        input_ids = batch.input_ids.clone()
        input_ids[members, 0] = (input_ids[members, 0] + 1) % 25
        return replace(batch, input_ids=input_ids)

    assert changed_rows(other_prompt, longest_for_products) == members


def test_the_kernel_computes_no_row_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout of thousands of tokens comes alone; seven copies of it would cost seven times as much."""
    batch = shared_batch()
    sequences = len(batch) + len(set(batch.prompts.tolist()))
    assert sum(block.shape[0] for block in pack(batch).blocks) > sequences
    monkeypatch.setattr(packing, "_LONGEST_FOR_PRODUCTS", 0)
    assert sum(block.shape[0] for block in pack(batch).blocks) == sequences
    assert [block.shape[0] for block in pack(batch.select(torch.tensor([0]))).blocks] == [1, 1]


@given(ragged_rows, st.integers(0, 3))
def test_padding_leaves_the_tokens_and_shares_no_slot(rows: tuple[tuple[int, int], ...], seed: int) -> None:
    packed = pack(shared_batch(rows, seed=seed))
    padded, count = packed.padded(), len(packed.input_ids)
    assert len(padded.input_ids) == len(padded.positions) == len(padded.places) == -(-count // 16) * 16
    assert padded.input_ids[:count].tolist() == packed.input_ids.tolist()
    assert padded.places[:count].tolist() == packed.places.tolist()
    assert len(padded.places.unique()) == len(padded.places)
    assert all(len(packed.blocks[0].queries) <= place for place in padded.places[count:].tolist())
    assert padded.slots == packed.slots + len(padded.input_ids) - count
