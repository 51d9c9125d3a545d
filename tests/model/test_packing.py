"""Packed rollouts against a construction token by token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from shared_prompts import ragged_rows, shared_batch, slow_sequences

from rloop_lightning.model.packing import pack, packed_micro_batches


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
    assert packed.tokens == len(input_ids)
    assert len(packed.input_ids) == len(packed.positions) == -(-len(input_ids) // 16) * 16
    assert packed.input_ids[: packed.tokens].tolist() == input_ids
    assert packed.positions[: packed.tokens].tolist() == positions
    assert packed.predicting.tolist() == predicting
    rows, columns = batch.completion_mask.nonzero(as_tuple=True)
    assert batch.input_ids[rows, batch.prompt_lengths[rows] + columns].tolist() == targets


@given(ragged_rows, st.integers(0, 3))
def test_values_of_a_batch_go_to_packed_tokens_and_back(rows: tuple[tuple[int, int], ...], seed: int) -> None:
    batch = shared_batch(rows, seed=seed)
    packed = pack(batch)
    gathered = packed.gather(batch.input_ids[:, :, None])
    assert gathered[:, 0].tolist() == packed.input_ids.tolist()
    back = packed.scatter(gathered, batch.input_ids.shape[1])[:, :, 0]
    for row, length in enumerate(batch.lengths.tolist()):
        assert back[row, :length].tolist() == batch.input_ids[row, :length].tolist()


@given(ragged_rows, st.integers(1, 80))
def test_micro_batches_hold_every_row_once_within_the_budget(rows: tuple[tuple[int, int], ...], budget: int) -> None:
    batch = shared_batch(rows)
    order = []
    for numbers, micro in packed_micro_batches(batch, budget):
        assert pack(micro).tokens <= budget or len(micro) == 1
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
