"""Logprobs and entropies over kept tokens, against a masked log_softmax and autograd in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import make_model, make_policy, make_rollout, random_batch, relative_difference
from torch import Tensor

from rloop_lightning.batching import collate
from rloop_lightning.engines.sampling import sample_tokens
from rloop_lightning.model import token_scores as module
from rloop_lightning.model.kept_tokens import KeptTokens, gather_logits
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import RolloutBatch, SamplingParams

ROWS, HIDDEN, VOCABULARY = 23, 12, 37
COEFFICIENTS = torch.linspace(-1, 2, ROWS, dtype=torch.float64)  # so that no two mixed-up rows cancel
SAMPLINGS = [
    SamplingParams(1, top_k=5),
    SamplingParams(1, top_p=0.9),
    SamplingParams(1, top_p=0.5, top_k=20, temperature=1.7),
    SamplingParams(1, top_p=0.999, temperature=0.4),
    SamplingParams(1, top_k=1),
    SamplingParams(1, top_k=1000),
]


def masked_distributions(logits: Tensor, kept: KeptTokens) -> Tensor:
    mask = torch.zeros(logits.shape, dtype=torch.bool)
    mask[kept.places, kept.token_ids] = True
    return logits.masked_fill(~mask, -torch.inf).log_softmax(-1)


def entropies_of(distributions: Tensor) -> Tensor:
    finite = distributions.clamp(min=-1e4)
    return -(distributions.exp() * finite).sum(-1)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_the_trainers_logprobs_are_the_engines_over_random_logits(sampling: SamplingParams, seed: int) -> None:
    """The engine's own, to float32 rounding: over the whole vocabulary they part by up to the log of the kept share."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(500, 300, generator=generator) * 3
    tokens, engine, kept = sample_tokens(logits, torch.rand(500, generator=generator), sampling)
    assert kept is not None
    mine = KeptTokens(kept.token_ids.long(), kept.counts.long())
    scaled = logits / sampling.temperature
    logprobs, _ = mine.scores(scaled[mine.places, mine.token_ids], tokens)
    torch.testing.assert_close(logprobs, engine, rtol=0, atol=2e-6)
    full = scaled.log_softmax(-1)[torch.arange(500), tokens]
    if sampling.top_k < 300:
        assert float((engine - full).max()) > (1e-4 if sampling.top_p == 0.999 else 0.05)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, KeptTokens]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, dtype=torch.float64)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    sampling = SamplingParams(1, top_p=0.8)
    tokens, _, kept = sample_tokens((hidden @ head.t()).float(), torch.rand(ROWS, generator=generator), sampling)
    assert kept is not None
    assert len(set(kept.counts.tolist())) > 3
    return (
        hidden.to(dtype).requires_grad_(),
        head.to(dtype).requires_grad_(),
        tokens,
        KeptTokens(kept.token_ids.long(), kept.counts.long()),
    )


def totals(logprobs: Tensor, entropies: Tensor, of: str) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    if of != "entropies":
        total = total + (COEFFICIENTS * logprobs).sum()
    if of != "logprobs":
        total = total + (COEFFICIENTS.flip(0) * entropies).sum()
    return total


@pytest.mark.parametrize("piece", [1, 5, 37, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("of", ["logprobs", "entropies", "both"])
def test_values_and_gradients_equal_a_masked_log_softmax(
    monkeypatch: pytest.MonkeyPatch, temperature: float, piece: int, of: str
) -> None:
    monkeypatch.setitem(module.LOGITS_PER_PIECE, "cpu", piece * ROWS)
    hidden, head, targets, kept = inputs()
    logits = gather_logits(hidden, head, kept, temperature)
    logprobs, entropies = kept.scores(logits, targets, entropy_gradient=True)
    assert logits.dtype == logprobs.dtype == entropies.dtype == torch.float32
    distributions = masked_distributions(hidden @ head.t() / temperature, kept)
    expected = distributions[torch.arange(ROWS), targets], entropies_of(distributions)
    for actual, wanted in zip((logprobs, entropies), expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(totals(logprobs, entropies, of), (hidden, head))
    slow = torch.autograd.grad(totals(*expected, of), (hidden, head))
    for actual, wanted in zip(found, slow, strict=True):
        assert float(wanted.abs().max()) > 0.1
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=2e-5)
    assert not kept.scores(logits, targets)[1].requires_grad


def test_a_bfloat16_head_keeps_the_dtypes_of_its_gradients() -> None:
    hidden, head, targets, kept = inputs(torch.bfloat16)
    logprobs, _ = kept.scores(gather_logits(hidden, head, kept, 1.0), targets)
    found = torch.autograd.grad((COEFFICIENTS * logprobs).sum(), (hidden, head))
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, torch.bfloat16]
    exact = masked_distributions(hidden.double() @ head.double().t(), kept)[torch.arange(ROWS), targets]
    for actual, wanted in zip(found, torch.autograd.grad((COEFFICIENTS * exact).sum(), (hidden, head)), strict=True):
        assert float(torch.cosine_similarity(actual.double().flatten(), wanted.double().flatten(), dim=0)) > 0.999


# --- through the policy -----------------------------------------------------------------------------------------------


@torch.no_grad()
def truncated_batch(policy: Policy, *, temperature: float = 1.3, top_p: float = 0.8) -> RolloutBatch:
    """A random batch whose tokens have been moved into what top-p keeps; engine's logprobs are those of the sampler."""
    batch = random_batch(temperature=temperature)
    sampling = SamplingParams(12, temperature=temperature, top_p=top_p)
    generator = torch.Generator().manual_seed(3)
    rollouts = []
    for row in range(len(batch)):
        prompt = batch.input_ids[row, : int(batch.prompt_lengths[row])].tolist()
        tokens, logprobs, kept = [], [], []
        for _ in range(int(batch.completion_lengths[row])):
            logits = policy.model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1:].float()
            token, logprob, step = sample_tokens(logits, torch.rand(1, generator=generator), sampling)
            assert step is not None
            tokens, logprobs, kept = [*tokens, int(token)], [*logprobs, float(logprob)], [*kept, step.token_ids]
        rollout = make_rollout(prompt=prompt, completion=tokens, sampling_logprobs=logprobs)
        counts = torch.tensor([len(ids) for ids in kept], dtype=torch.int32)
        rollouts.append(replace(rollout, kept_tokens=torch.cat(kept).numpy(), kept_counts=counts.numpy()))
    return collate(rollouts, batch.advantages.tolist(), temperature=temperature)


class WithBias(torch.nn.Module):
    """A head that is not a plain product."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, torch.nn.Parameter(torch.linspace(-1, 1, len(linear.weight)).double())

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden, self.weight, self.bias)


def policy_with_bias() -> Policy:
    from rloop_lightning.data.countdown_policy import make_tokenizer

    model = make_model(tie_word_embeddings=False)
    model.set_output_embeddings(WithBias(model.get_output_embeddings()))
    return Policy(model, make_tokenizer(), 16384)


@pytest.mark.parametrize("kind", ["packed", "padded", "head with a bias", "soft cap and scale"])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_a_policy_renormalises_over_what_the_engine_kept(
    kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_with_bias() if kind == "head with a bias" else make_policy()
    if kind == "padded":
        policy.packs = False
    if kind == "soft cap and scale":
        policy = make_policy("Gemma2", final_logit_softcapping=3.0, num_hidden_layers=2)
    monkeypatch.setattr("rloop_lightning.model.head._LOGITS_PER_CHUNK", chunk * 25)
    batch = truncated_batch(policy)
    policy.zero_grad()
    scores = policy.logprobs(batch, entropy_gradient=True)
    torch.testing.assert_close(scores.logprobs, batch.sampling_logprobs, rtol=0, atol=1e-4)
    kept = KeptTokens.of(batch)
    assert kept is not None
    rows, columns = batch.completion_mask.nonzero(as_tuple=True)
    places = batch.prompt_lengths[rows] + columns
    logits = torch.stack(
        [
            policy.model(input_ids=batch.input_ids[r : r + 1, :p]).logits[0, -1]
            for r, p in zip(rows, places, strict=True)
        ]
    )
    distributions = masked_distributions(logits.double() / batch.temperature, kept)
    weights = torch.linspace(-1, 2, len(rows), dtype=torch.float64)
    slow = (weights * distributions[torch.arange(len(rows)), batch.input_ids[rows, places]]).sum()
    slow = slow + (weights.flip(0) * entropies_of(distributions)).sum()
    fast = (weights * scores.logprobs[rows, columns]).sum() + (weights.flip(0) * scores.entropy[rows, columns]).sum()
    assert float(fast.detach()) == pytest.approx(float(slow.detach()), rel=1e-4, abs=1e-4)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    found, expected = (
        torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)]) for total in (fast, slow)
    )
    assert relative_difference(found, expected) < 1e-5


def test_micro_batches_and_chosen_rows_keep_their_tokens() -> None:
    policy = make_policy(max_tokens=20)
    batch = truncated_batch(policy)
    for rows, micro in policy.micro_batches(batch):
        assert micro.kept_counts is not None
        assert micro.kept_tokens is not None
        assert micro.kept_tokens.shape[1] == int(micro.kept_counts.sum(1).max())
        torch.testing.assert_close(
            policy.logprobs(micro).logprobs,
            batch.sampling_logprobs[rows, : micro.loss_mask.shape[1]],
            rtol=0,
            atol=1e-4,
        )
    whole = policy.scores_no_grad(batch).logprobs
    reverse = torch.arange(len(batch)).flip(0)
    torch.testing.assert_close(policy.scores_no_grad(batch.select(reverse)).logprobs, whole[reverse])
    assert batch.to("meta").kept_tokens.is_meta


@pytest.mark.parametrize("fault", ["one rollout", "length", "sum", "sampled", "empty"])
def test_kept_tokens_that_do_not_fit_are_refused(fault: str) -> None:
    first = replace(
        make_rollout(completion=(6, 7)),
        kept_tokens=torch.tensor([6, 8, 7]).int().numpy(),
        kept_counts=torch.tensor([2, 1]).int().numpy(),
    )
    spoilt = {
        "one rollout": {"kept_tokens": None, "kept_counts": None},
        "length": {"kept_counts": torch.tensor([3]).int().numpy()},
        "sum": {"kept_counts": torch.tensor([1, 1]).int().numpy()},
        "sampled": {"kept_tokens": torch.tensor([7, 8, 6]).int().numpy()},
        "empty": {"kept_counts": torch.tensor([3, 0]).int().numpy()},
    }[fault]
    assert collate([first, first], [0.0, 0.0]).kept_tokens.tolist() == [[6, 8, 7]] * 2
    with pytest.raises(ValueError, match="either all rollouts of a batch or none come with the tokens that top-k and"):
        collate([first, replace(first, **spoilt)], [0.0, 0.0])
