"""The step that a CUDA graph records, run without one: fixed tensors, whole buffers, columns masked until written."""

from __future__ import annotations

import pytest
import torch
from builders import make_policy

from rloop_lightning.engines.decode_graph import can_record
from rloop_lightning.engines.row_cache import row_cache
from rloop_lightning.engines.rows import Rows
from rloop_lightning.model.attend import attend_single, attend_single_fused

PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11, 12]]
NEW = 40  # more than a buffer's first room


@pytest.mark.parametrize(
    ("architecture", "prompts"), [("Qwen2", PROMPTS), ("Llama", PROMPTS), ("Qwen2", [[3, 4, 5], [6, 7, 8]])]
)
def test_fixed_shapes_give_the_logits_of_growing_ones(architecture: str, prompts: list[list[int]]) -> None:
    policy = make_policy(architecture)
    with torch.inference_mode():
        growing, fixed = (
            Rows(policy, prompts, NEW, torch.float64, fixed_shapes=fixed_shapes) for fixed_shapes in (False, True)
        )
        for step in range(NEW):
            if step == 20:  # one row ends, another is repeated
                kept = torch.tensor([1, 0, 1])
                growing.select(kept)
                fixed.select(kept)
            if step in (24, 30):  # another row ends, and a prompt begins in its place
                for rows in (growing, fixed):
                    rows.replace(torch.tensor([2, 0]), [[7, 8, 9, 3], [4]], torch.tensor([0, 1]))
            if step == 34:  # one that has more columns than the batch
                for rows in (growing, fixed):
                    rows.replace(torch.tensor([1]), [[5] * 60], torch.tensor([0]))
            tokens = (torch.arange(len(growing.logits)) + 5 * step) % 20 + 2
            growing.append(tokens)
            fixed.append(tokens)
            torch.testing.assert_close(fixed.logits, growing.logits)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_single_query_by_the_fused_kernel(kv_heads: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 1, 8, generator=generator, dtype=torch.float64)
    key = torch.randn(3, kv_heads, 9, 8, generator=generator, dtype=torch.float64)
    value = torch.randn(3, kv_heads, 9, 6, generator=generator, dtype=torch.float64)
    mask = (torch.arange(9) > torch.tensor([[0], [3], [5]]))[:, None, None] if masked else None
    expected = attend_single(query, key, value, mask, 0.3)
    torch.testing.assert_close(attend_single_fused(query, key, value, mask, 0.3), expected)


def test_what_is_not_recorded() -> None:
    policy = make_policy()
    assert not can_record(policy, row_cache(policy.model.config, torch.float32))  # on a CPU
