"""What the tokens of a packed row see of each other, by every kind of attention, against loops over pairs of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import gradients, make_policy, relative_difference
from hypothesis import given, settings
from shared_prompts import ROWS, ragged_rows, shared_batch, slow_sequences
from torch import Tensor
from transformers.masking_utils import causal_mask_function, chunked_causal_mask_function
from transformers.masking_utils import sliding_window_causal_mask_function as sliding

from rloop_lightning.model import block_attention
from rloop_lightning.model.block_attention import BlockAttention
from rloop_lightning.model.flexible_attention import FlexibleAttention
from rloop_lightning.model.packing import PackedBatch, pack
from rloop_lightning.model.row_attention import window_of
from rloop_lightning.model.square_attention import SquareAttention
from rloop_lightning.model.varlen_attention import VarlenAttention
from rloop_lightning.types import RolloutBatch

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")

HEADS, KV_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 8, 6
MASKS = {
    "causal": causal_mask_function,
    "sliding": sliding(4),
    "a window as long as the rollouts": sliding(64),
    "chunks": chunked_causal_mask_function(5, torch.zeros(1, dtype=torch.int64)),
}


def slow_kernel(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    ends: Tensor,
    key_ends: Tensor,
    *longest: int,
    scaling: float,
    window: int,
) -> Tensor:
    """What flash-attn's and PyTorch's kernels for sequences of varying length compute, query by query."""
    sharing, found = queries.shape[1] // keys.shape[1], []
    for start, end, key_start, key_end in zip(ends, ends[1:], key_ends, key_ends[1:], strict=False):
        assert end - start <= longest[0]
        assert key_end - key_start <= longest[1]
        for query in range(int(start), int(end)):
            last = int(key_end) - (int(end) - 1 - query)
            first = max(int(key_start), last - window) if window else int(key_start)
            key, value = (part[first:last].repeat_interleave(sharing, dim=1) for part in (keys, values))
            weights = (torch.einsum("hd,khd->hk", queries[query], key) * scaling).softmax(-1)
            found.append(torch.einsum("hk,khd->hd", weights, value))
    return torch.stack(found)


KINDS: dict[str, Callable[[PackedBatch, Any], Any]] = {
    "products": BlockAttention,
    "fused": BlockAttention,
    "varlen": lambda packed, sees: VarlenAttention(
        packed, window_of(sees, longest(packed), torch.device("cpu")), slow_kernel
    ),
    "flex": FlexibleAttention,
    "squares": lambda packed, sees: SquareAttention(packed),
}
FLEXIBLE = ("products", "fused", "flex")  # take any mask, soft caps and sinks
TAKES = {"varlen": ("causal", "sliding", "a window as long as the rollouts"), "squares": ("causal",)}
"""The masks of the other kinds."""


def longest(packed: PackedBatch) -> int:
    return int(packed.positions.max()) + 1


@pytest.fixture
def kind_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[PackedBatch, Any], Any]]:
    """A kind of attention by name."""

    def find(kind: str) -> Callable[[PackedBatch, Any], Any]:
        if kind == "fused":
            monkeypatch.setattr(block_attention, "LONGEST_FOR_PRODUCTS", 0)
        return KINDS[kind]

    return find


KindOf = Callable[[str], Callable[[PackedBatch, Any], Any]]


def seen_by_row(batch: RolloutBatch) -> list[list[int]]:
    """The tokens before each token of the packed row, itself included: of its prompt, and of its completion."""
    prompts, owners, completions = slow_sequences(batch)
    seen: list[list[int]] = []
    starts = []
    for prompt in prompts:
        starts.append(len(seen))
        seen += [list(range(starts[-1], starts[-1] + place + 1)) for place in range(len(prompt))]
    for owner, completion in zip(owners, completions, strict=True):
        before, first = list(range(starts[owner], starts[owner] + len(prompts[owner]))), len(seen)
        seen += [before + list(range(first, first + place + 1)) for place in range(len(completion))]
    return seen


def is_seen(mask: str, query: int, key: int) -> bool:
    """By places in a rollout."""
    return {"causal": True, "sliding": query - key < 4, "chunks": query // 5 == key // 5}.get(mask, True)


def qkv(count: int, value_width: int = WIDTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (count, HEADS, WIDTH), (count, KV_HEADS, WIDTH), (count, KV_HEADS, value_width)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def slow_attention(
    batch: RolloutBatch, mask: str, parts: list[Tensor], softcap: float | None = None, sinks: Tensor | None = None
) -> Tensor:
    """Softmax over what each token sees, written out; [N, heads, Dv]."""
    queries, keys, values = parts
    rows = []
    for query, before in enumerate(seen_by_row(batch)):
        seen = [key for place, key in enumerate(before) if is_seen(mask, len(before) - 1, place)]
        heads = []
        for head in range(HEADS):
            scores = 0.3 * keys[seen, head // 2] @ queries[query, head]
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            weights = scores.exp()
            total = weights.sum() + (0 if sinks is None else sinks[head].exp())
            heads.append((weights / total) @ values[seen, head // 2])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("kind", "mask"), [(kind, mask) for kind in KINDS for mask in MASKS if mask in TAKES.get(kind, MASKS)]
)
def test_a_token_sees_its_prompt_and_its_completion_as_far_as_the_model_says(
    kind_of: KindOf, kind: str, mask: str
) -> None:
    batch = shared_batch()
    packed = pack(batch)
    parts = qkv(len(packed.input_ids))
    with torch.no_grad():
        found = kind_of(kind)(packed, MASKS[mask])(*parts, 0.3)
    assert found.shape == (len(packed.input_ids), HEADS, WIDTH)
    torch.testing.assert_close(found[: packed.tokens], slow_attention(batch, mask, parts))


@given(rows=ragged_rows)
@settings(max_examples=15)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fused"])
def test_whatever_the_lengths_and_prompts(kind: str, rows: tuple[tuple[int, int], ...]) -> None:
    batch = shared_batch(rows)
    packed = pack(batch)
    parts = qkv(len(packed.input_ids))
    mask = "causal" if kind == "squares" else "sliding"
    with torch.no_grad():
        found = KINDS[kind](packed, MASKS[mask])(*parts, 0.3)
    torch.testing.assert_close(found[: packed.tokens], slow_attention(batch, mask, parts))


@pytest.mark.parametrize("kind", FLEXIBLE)
@pytest.mark.parametrize(
    ("value_width", "softcap", "sinks"),
    [(VALUE_WIDTH, None, False), (WIDTH, 0.7, False), (WIDTH, None, True), (VALUE_WIDTH, 0.7, True)],
    ids=["narrow values", "softcap", "sinks", "all"],
)
def test_what_some_architectures_do_to_scores_and_values(
    kind_of: KindOf, kind: str, value_width: int, softcap: float | None, sinks: bool
) -> None:
    batch = shared_batch()
    packed = pack(batch)
    parts = qkv(len(packed.input_ids), value_width)
    weights = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64) if sinks else None
    with torch.no_grad():
        found = kind_of(kind)(packed, sliding(4))(*parts, 0.3, softcap, weights)
    torch.testing.assert_close(found[: packed.tokens], slow_attention(batch, "sliding", parts, softcap, weights))


@pytest.mark.parametrize("kind", ["products", "fused", "varlen", "squares"])  # FlexAttention has none on a CPU
def test_gradients_equal_those_of_the_loops(kind_of: KindOf, kind: str) -> None:
    mask = "causal" if kind == "squares" else "sliding"
    batch = shared_batch()
    packed = pack(batch)
    parts = [part.requires_grad_() for part in qkv(len(packed.input_ids))]
    towards = torch.randn(packed.tokens, HEADS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = kind_of(kind)(packed, MASKS[mask])(*parts, 0.3)[: packed.tokens]
    slopes = torch.autograd.grad((towards * found).sum(), parts)
    expected = torch.autograd.grad((towards * slow_attention(batch, mask, parts)).sum(), parts)
    for found_slope, slope in zip(slopes, expected, strict=True):
        torch.testing.assert_close(found_slope, slope)


def test_sinks_have_a_gradient() -> None:
    batch = shared_batch()
    packed = pack(batch)
    parts, sinks = qkv(len(packed.input_ids)), torch.zeros(HEADS, dtype=torch.float64, requires_grad=True)
    found = BlockAttention(packed, causal_mask_function)(*parts, 0.3, None, sinks)[: packed.tokens]
    (slope,) = torch.autograd.grad(found.square().sum(), sinks)
    (expected,) = torch.autograd.grad(slow_attention(batch, "causal", parts, None, sinks).square().sum(), sinks)
    torch.testing.assert_close(slope, expected)


def test_the_waste_of_squares_counts_repeated_prompts_and_padding() -> None:
    # One prompt of 2 tokens; completions of 3 and 8. The prompt's 3 pairs are needed once, each completion sees it.
    batch = shared_batch(((0, 3), (0, 8)))
    prompt = int(batch.prompt_lengths[0])
    lengths = [prompt + 3, prompt + 8]
    needed = sum(n * (n + 1) // 2 for n in lengths) - prompt * (prompt + 1) // 2
    computed = sum(n * (n + 1) // 2 for n in lengths)  # they are not similar, so each is a square of its own
    assert SquareAttention(pack(batch)).waste == pytest.approx(computed / needed)
    similar = shared_batch(((0, 20), (0, 21)))
    lengths = [prompt + 20, prompt + 21]
    needed = sum(n * (n + 1) // 2 for n in lengths) - prompt * (prompt + 1) // 2
    assert SquareAttention(pack(similar)).waste == pytest.approx(lengths[1] * (lengths[1] + 1) / needed)


# --- through a policy


def gradient(policy: Any, batch: RolloutBatch) -> Tensor:
    policy.zero_grad()
    (policy.logprobs(batch).logprobs * batch.advantages[:, None]).sum().backward()
    return gradients(policy)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_both_kinds_of_a_cpu_give_a_policy_the_same(monkeypatch: pytest.MonkeyPatch, key_heads: int) -> None:
    policy, batch = make_policy("Llama", num_key_value_heads=key_heads), shared_batch()
    products, products_gradient = policy.logprobs(batch).logprobs, gradient(policy, batch)
    monkeypatch.setattr(block_attention, "LONGEST_FOR_PRODUCTS", 0)
    fused, fused_gradient = policy.logprobs(batch).logprobs, gradient(policy, batch)
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
        patch.setattr(block_attention, "LONGEST_FOR_PRODUCTS", longest_for_products)
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
