"""Batches whose rows share prompts, and what they are sequence by sequence."""

from __future__ import annotations

import numpy as np
from builders import make_rollout
from hypothesis import strategies as st

from rloop_lightning.batching import collate
from rloop_lightning.types import RolloutBatch

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
