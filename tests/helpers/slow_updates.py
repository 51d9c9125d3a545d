"""One update of a module through Lightning, and the slow implementation that it is held against.

The slow one loops over rows and tokens on float64 weights: a test says by cases what each token adds to the loss and
what its derivative by the token's logprob is, and the model's own forward carries that back to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from builders import GradientRecorder, fit, gradients, make_policy, slow_logprobs
from torch import Tensor

from rloop_lightning.model.policy import Policy
from rloop_lightning.types import RolloutBatch, RolloutStep

Token = tuple[float, float]
"""What a token adds to the loss, and the derivative of that by its logprob."""

RowLoss = Callable[[int, Sequence[float]], Sequence[Token]]
"""(row, logprobs of its completion) to what each of its tokens adds."""


def step_of(batch: RolloutBatch, index: int = 0) -> RolloutStep:
    return RolloutStep(index, (), batch, {"rollout/reward_mean": 0.5})


def with_old_logprobs(batch: RolloutBatch, policy: Policy, spread: float = 0.6, seed: int = 7) -> RolloutBatch:
    """Old logprobs around the current ones, so that ratios are clipped on both sides; replayed rows keep their own."""
    noise = torch.randn(batch.loss_mask.shape, generator=torch.Generator().manual_seed(seed)) * spread
    old = (policy.logprobs(batch).logprobs.detach() + noise) * batch.completion_mask
    return replace(batch, old_logprobs=batch.recorded_or(old))


def with_engine_logprobs(batch: RolloutBatch, policy: Policy, spread: float = 0.6, seed: int = 11) -> RolloutBatch:
    """Sampling logprobs around the current ones, as of an engine that computes otherwise."""
    noise = torch.randn(batch.loss_mask.shape, generator=torch.Generator().manual_seed(seed)) * spread
    return replace(batch, sampling_logprobs=(policy.logprobs(batch).logprobs.detach() + noise) * batch.completion_mask)


class MoveTo(L.Callback):
    """Gives the policy other weights when the fit begins, after the reference was made from those it had."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.policy.load_state_dict(self.policy.state_dict())


def moved_policy() -> Policy:
    """Where the policy has got to since its reference was taken: each weight a little off."""
    policy, other = make_policy(), make_policy(seed=1)
    for mine, theirs in zip(policy.parameters(), other.parameters(), strict=True):
        mine.data += 0.1 * theirs.data
    return policy


def update_gradient(module: Any, policy: Policy, batch: RolloutBatch, **kwargs: Any) -> Tensor:
    """The gradient of one `update`, through Lightning."""
    recorder = GradientRecorder()

    class OneUpdate(type(module)):  # type: ignore[misc]  # a class that is known at run time alone
        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.update(batch)

    module.__class__ = OneUpdate
    fit(module, policy, [batch], [*kwargs.pop("callbacks", []), recorder], **kwargs)
    (gradient,) = recorder.gradients
    return gradient


def slow_update(policy: Policy, batch: RolloutBatch, row_loss: RowLoss, count: float) -> tuple[Tensor, float]:
    """Gradient by the weights, and value, of the sum over all tokens in the loss divided by `count`."""
    policy.zero_grad()
    value, total = 0.0, torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(slow_logprobs(policy, batch)):
        for t, (token, slope) in enumerate(row_loss(i, row.tolist())):
            if batch.loss_mask[i, t]:
                value += token / count
                total = total + slope / count * row[t]
    total.backward()
    return gradients(policy), value


def slow_gradient(
    policy: Policy, batch: RolloutBatch, slope: Callable[[int, int, float], float], count: float
) -> Tensor:
    """Gradient of sum(loss) / count, where slope(row, t, logprob) is a token's d loss / d logprob."""
    return slow_update(policy, batch, lambda i, row: [(0.0, slope(i, t, lp)) for t, lp in enumerate(row)], count)[0]
