"""token_scores against log_softmax and autograd in float64."""

import pytest
import torch
from torch import Tensor

from rloop_lightning.model import token_scores as module
from rloop_lightning.model.token_scores import token_scores

ROWS, HIDDEN, VOCABULARY = 23, 12, 37


def inputs(dtype: torch.dtype = torch.float64, head_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, dtype=torch.float64)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return hidden.to(dtype).requires_grad_(), head.to(head_dtype or dtype).requires_grad_(), targets


def slow_scores(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    distributions = (hidden.double() @ head.double().t() / temperature).log_softmax(-1)
    return distributions[torch.arange(len(targets)), targets], -(distributions.exp() * distributions).sum(-1)


COEFFICIENTS = torch.linspace(-1, 2, ROWS, dtype=torch.float64)  # so that no two mixed-up rows cancel


def slow_gradients(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, ...]:
    logprobs, _ = slow_scores(hidden, head, targets, temperature)
    return torch.autograd.grad((COEFFICIENTS * logprobs).sum(), (hidden, head))


@pytest.mark.parametrize("piece", [1, 5, 37, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_values_and_gradients_equal_log_softmax(
    monkeypatch: pytest.MonkeyPatch, temperature: float, piece: int
) -> None:
    monkeypatch.setitem(module.LOGITS_PER_PIECE, "cpu", piece * ROWS)
    hidden, head, targets = inputs()
    logprobs, entropies = token_scores(hidden, head, targets, temperature)
    expected_logprobs, expected_entropies = slow_scores(hidden, head, targets, temperature)
    assert logprobs.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected_logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies.double(), expected_entropies.detach(), rtol=1e-5, atol=1e-5)
    assert not entropies.requires_grad
    found = torch.autograd.grad((COEFFICIENTS * logprobs).sum(), (hidden, head))
    for actual, expected in zip(found, slow_gradients(hidden, head, targets, temperature), strict=True):
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("piece", [1, 5, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("with_logprobs", [False, True])
def test_entropies_have_gradients_on_request(
    monkeypatch: pytest.MonkeyPatch, temperature: float, piece: int, with_logprobs: bool
) -> None:
    """Of the entropies alone, and of both: autograd over all logits says what they are."""
    monkeypatch.setitem(module.LOGITS_PER_PIECE, "cpu", piece * ROWS)
    hidden, head, targets = inputs()

    def total(logprobs: Tensor, entropies: Tensor) -> Tensor:
        return (COEFFICIENTS.flip(0) * entropies).sum() + with_logprobs * (COEFFICIENTS * logprobs).sum()

    logprobs, entropies = token_scores(hidden, head, targets, temperature, entropy_gradient=True)
    found = torch.autograd.grad(
        total(logprobs, entropies) if with_logprobs else total(logprobs.detach(), entropies), (hidden, head)
    )
    slow = torch.autograd.grad(total(*slow_scores(hidden, head, targets, temperature)), (hidden, head))
    for actual, expected in zip(found, slow, strict=True):
        assert float(expected.abs().max()) > 0.1
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def test_large_logits_do_not_overflow() -> None:
    hidden, head, targets = inputs()
    logprobs, entropies = token_scores(hidden * 1000, head, targets, 1.0)
    expected_logprobs, expected_entropies = slow_scores(hidden * 1000, head, targets, 1.0)
    torch.testing.assert_close(logprobs.double(), expected_logprobs, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(entropies.double(), expected_entropies, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_a_bfloat16_head_rounds_and_keeps_the_dtypes_of_its_gradients(hidden_dtype: torch.dtype) -> None:
    hidden, head, targets = inputs(hidden_dtype, torch.bfloat16)
    logprobs, entropies = token_scores(hidden, head, targets, 1.0)
    expected_logprobs, expected_entropies = slow_scores(hidden, head, targets, 1.0)
    assert logprobs.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected_logprobs, rtol=0.02, atol=0.05)
    torch.testing.assert_close(entropies.double(), expected_entropies, rtol=0.02, atol=0.05)
    found = torch.autograd.grad((COEFFICIENTS * logprobs).sum(), (hidden, head))
    assert [gradient.dtype for gradient in found] == [hidden_dtype, torch.bfloat16]
    for actual, expected in zip(found, slow_gradients(hidden, head, targets, 1.0), strict=True):
        similarity = torch.cosine_similarity(actual.double().flatten(), expected.double().flatten(), dim=0)
        assert float(similarity) > 0.999


def test_backward_computes_the_same_logits_under_autocast() -> None:
    def gradients(*, autocast: bool) -> tuple[Tensor, ...]:
        hidden, head, targets = inputs(torch.float32)
        logprobs, _ = token_scores(hidden, head, targets, 1.0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return torch.autograd.grad((COEFFICIENTS.float() * logprobs).sum(), (hidden, head))

    for inside, outside in zip(gradients(autocast=True), gradients(autocast=False), strict=True):
        torch.testing.assert_close(inside, outside, rtol=0, atol=0)
