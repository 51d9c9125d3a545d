"""Drawing tokens against plain running sums."""

from __future__ import annotations

import math

import pytest
import torch

from rloop_lightning.engines import sampling as module
from rloop_lightning.engines.sampling import sample_tokens
from rloop_lightning.model.token_scores import LOGITS_PER_PIECE
from rloop_lightning.types import SamplingParams


def test_a_token_of_probability_zero_is_never_sampled() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -200.0, -torch.inf]])
    almost_one = 1 - 2**-24  # the largest that torch.rand returns
    for uniform, token, logprob in [(0.0, 1, -math.log(1 + math.e)), (almost_one, 3, 1 - math.log(1 + math.e))]:
        tokens, logprobs, _ = sample_tokens(logits, torch.tensor([uniform]), SamplingParams(max_new_tokens=1))
        assert tokens.tolist() == [token]
        assert logprobs.tolist() == pytest.approx([logprob])


def test_the_largest_uniform_never_leaves_the_possible_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5000, 300, generator=generator) * 3
    logits[:, -40:] = -torch.inf
    uniforms = torch.full((5000,), 1 - 2**-24)
    _, logprobs, _ = sample_tokens(logits, uniforms, SamplingParams(max_new_tokens=1))
    assert logprobs.isfinite().all()


# Below, at and above the size of a block, whole blocks and not.
VOCABULARIES = pytest.mark.parametrize("vocabulary", [1, 5, 127, 128, 129, 256, 300, 1000])
LARGEST_UNIFORM = 1 - 2**-24


@VOCABULARIES
def test_inversion_equals_that_of_a_plain_running_sum(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    weights = (torch.randn(4000, vocabulary, generator=generator) * 2).exp()
    weights[torch.rand(weights.shape, generator=generator) < 0.3] = 0
    weights[:, vocabulary // 2] += 1e-3
    uniforms = torch.rand(4000, 1, generator=generator)
    tokens, total = module._invert(weights, uniforms)
    sums = weights.double().cumsum(-1)
    wanted = uniforms.double() * sums[:, -1:]
    torch.testing.assert_close(total.double(), sums[:, -1:], rtol=1e-5, atol=0)
    assert (weights.gather(-1, tokens) > 0).all()
    expected = torch.searchsorted(sums, wanted, right=True)
    assert float((tokens == expected).double().mean()) > 0.999
    # The others are neighbours: what is wanted lies at the edge of their share but for rounding.
    after = sums.gather(-1, tokens)
    before = after - weights.double().gather(-1, tokens)
    rounding = 1e-6 * sums[:, -1:]
    assert ((before - rounding <= wanted) & (wanted <= after + rounding)).all()


@VOCABULARIES
@pytest.mark.parametrize("uniform", [0.0, 0.5, LARGEST_UNIFORM])
@pytest.mark.parametrize("weight", [1.0, 0.1, 1e-42])  # the last a subnormal number, whose shares round up to it
def test_inversion_finds_the_only_token_there_is(vocabulary: int, uniform: float, weight: float) -> None:
    tokens, total = module._invert(weight * torch.eye(vocabulary), torch.full((vocabulary, 1), uniform))
    assert tokens.flatten().tolist() == list(range(vocabulary))
    torch.testing.assert_close(total, torch.full((vocabulary, 1), weight), rtol=0, atol=0)


@pytest.mark.parametrize("uniform", [0.0, 0.5, LARGEST_UNIFORM])
@pytest.mark.parametrize("density", [0.01, 0.5])
def test_inversion_never_gives_a_token_of_weight_zero(uniform: float, density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = (torch.randn(5000, 700, generator=generator) * 8).exp()  # over thirty orders of magnitude
    weights[torch.rand(weights.shape, generator=generator) > density] = 0
    weights = weights[weights.amax(-1) > 0]
    tokens, _ = module._invert(weights, torch.full((len(weights), 1), uniform))
    assert (weights.gather(-1, tokens) > 0).all()


def test_top_p_is_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1000, 4)
    uniforms = torch.arange(1000) / 1000

    def kept(top_p: float, top_k: int = 0) -> set[int]:
        return set(sample_tokens(logits, uniforms, SamplingParams(1, top_p=top_p, top_k=top_k))[0].tolist())

    assert kept(0.49) == {0}
    assert kept(0.51) == {0, 1}
    assert kept(0.81) == {0, 1, 2}
    assert kept(0.96) == {0, 1, 2, 3}
    # After top-k 2 the first token has 0.5 / 0.8 of what is left.
    assert kept(0.6, top_k=2) == {0}


@pytest.mark.parametrize("sampling", [SamplingParams(1), SamplingParams(1, top_p=0.8, top_k=5)])
@pytest.mark.parametrize("piece", [1, 7 * 30, 8 * 30 - 1, 10**9])
def test_drawing_some_rows_at_a_time_draws_the_same(
    piece: int, sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(50, 30, generator=generator) * 3, torch.rand(50, generator=generator)
    tokens, logprobs, kept = sample_tokens(logits, uniforms, sampling)
    monkeypatch.setitem(LOGITS_PER_PIECE, "cpu", piece)
    one_tokens, one_logprobs, one_kept = sample_tokens(logits, uniforms, sampling)
    assert one_tokens.tolist() == tokens.tolist()
    assert len(set(one_tokens.tolist())) > 10
    torch.testing.assert_close(one_logprobs, logprobs, rtol=0, atol=1e-6)
    assert (kept is None) == (one_kept is None) == (not sampling.truncates)
    if kept is not None and one_kept is not None:
        assert torch.equal(one_kept.token_ids, kept.token_ids)
        assert torch.equal(one_kept.counts, kept.counts)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_k": 2}, [[1, 3], [0, 1]]),
        ({"top_p": 0.85}, [[0, 1, 3], [0, 1]]),
        ({"top_p": 0.6}, [[1, 3], [0]]),
        ({"top_k": 2, "top_p": 0.6}, [[1, 3], [0]]),  # after top-k 2: 0.4 / 0.7 and 0.8 / 0.9
        ({"top_k": 9}, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        ({"top_p": 0.01}, [[1], [0]]),
    ],
)
def test_the_kept_tokens_of_each_row_by_hand(settings: dict[str, float], expected: list[list[int]]) -> None:
    probabilities = torch.tensor([[0.2, 0.4, 0.1, 0.3], [0.8, 0.1, 0.06, 0.04]])
    *_, kept = sample_tokens(probabilities.log(), torch.zeros(2), SamplingParams(1, **settings))
    assert kept is not None
    assert kept.counts.tolist() == [len(row) for row in expected]
    assert [row.tolist() for row in kept.token_ids.split(kept.counts.tolist())] == expected


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(1),
        SamplingParams(1, temperature=0, top_p=0.5),
        SamplingParams(1, top_k=2, report_kept_tokens=False),
    ],
)
def test_without_truncation_or_request_no_kept_tokens_are_reported(sampling: SamplingParams) -> None:
    assert sample_tokens(torch.zeros(2, 4), torch.zeros(2), sampling)[2] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("vocabulary", [25, 128, 300])
@pytest.mark.parametrize(
    "sampling", [SamplingParams(1), SamplingParams(1, temperature=0), SamplingParams(1, top_k=3, top_p=0.5)]
)
def test_a_logit_that_is_not_finite_gives_a_logprob_that_is_not(
    sampling: SamplingParams, vocabulary: int, bad: float
) -> None:
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(0))
    expected = sample_tokens(logits, torch.full((3,), 0.9), sampling)
    logits[1, vocabulary // 2] = bad
    tokens, logprobs, _ = sample_tokens(logits, torch.full((3,), 0.9), sampling)
    assert logprobs[1].isnan()
    assert 0 <= int(tokens[1]) < vocabulary
    for row in (0, 2):  # the other rows are what they were
        assert (tokens[row], logprobs[row]) == (expected[0][row], expected[1][row])


def test_logits_that_are_all_nan_give_a_token_of_the_vocabulary() -> None:
    tokens, logprobs, _ = sample_tokens(torch.full((2, 300), math.nan), torch.tensor([0.0, 0.99]), SamplingParams(1))
    assert logprobs.isnan().all()
    assert (tokens < 300).all()
