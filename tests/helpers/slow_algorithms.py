"""The algorithms once more, as slow as their formulas: loops over groups, rollouts and tokens in plain Python.

    Slow(divisor="std", aggregation="sequence-mean").update(policy, reference, groups, batch)

Of the batch it takes the logprobs of engine and old policy and the mask, nothing that the trainer computed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from builders import (
    GradientRecorder,
    StepMetrics,
    fit,
    gradients,
    make_group,
    make_policy,
    make_rollout,
    slow_distributions,
    slow_logprobs,
)
from slow_updates import MoveTo, Token, moved_policy, slow_update, with_engine_logprobs, with_old_logprobs
from torch import Tensor

from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Group, RolloutBatch, RolloutStep, SamplingParams

LIMIT = 10
SAMPLING = SamplingParams(max_new_tokens=LIMIT)


def random_groups(sizes: Sequence[int] = (4, 4, 3), seed: int = 0) -> list[Group]:
    """Groups of random rollouts of 1 to 10 tokens, those of 10 truncated; rewards of three values."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, n: int = 1) -> list[int]:
        return torch.randint(0, high, (n,), generator=generator).tolist()

    groups = []
    for p, size in enumerate(sizes):
        rollouts = []
        for _ in range(size):
            length = 1 + draw(LIMIT)[0]
            rollout = make_rollout(
                f"p{p}",
                draw(25, length),
                prompt=range(2, 3 + p),
                reward=[0.0, 1.0, 0.25][draw(3)[0]],
                finish_reason="length" if length == LIMIT else "stop",
            )
            rollouts.append(rollout)
        groups.append(make_group(*rollouts))
    return groups


def slow_advantages(rewards: Sequence[float], divisor: str) -> list[float]:
    """Of one group."""
    mean = math.fsum(rewards) / len(rewards)
    if max(rewards) == min(rewards) or (divisor == "mean" and mean <= 0):
        return [0.0] * len(rewards)
    return [(reward - mean) / scale(rewards, divisor) for reward in rewards]


def scale(rewards: Sequence[float], divisor: str) -> float:
    """What a group's differences from its mean are divided by."""
    if divisor == "std":
        return statistics.stdev(rewards) + 1e-6
    if divisor == "mean":
        return max(math.fsum(rewards), max(rewards) - min(rewards)) / len(rewards)
    return 1.0


def slow_kl(logprob: float, other: float, estimator: str) -> Token:
    d = other - logprob
    if estimator == "k3" and d > math.log(10):  # exp(d) goes on as its tangent
        return 10 * (1 + d - math.log(10)) - d - 1, -9.0
    return {"k1": (-d, 1.0), "k2": (d * d / 2, -d), "k3": (math.exp(d) - d - 1, 1 - math.exp(d))}[estimator]


@dataclass(frozen=True)
class Slow:
    """An algorithm by its formula."""

    divisor: str = "std"  # of advantages: std, mean or none
    aggregation: str = "token-mean"
    low: float = 0.2
    high: float = 0.2
    dual: float = 10.0
    of_rollout: bool = False  # one ratio for a whole rollout
    correction: str = "none"
    level: str = "token"
    cap: float = 2.0
    beta: float = 0.0
    estimator: str = "k3"
    kl_in: str = "loss"
    entropy_coef: float = 0.0
    buffer: int = 0  # tokens of the soft overlong punishment

    def update(
        self, policy: Policy, reference: Policy, groups: Sequence[Group], batch: RolloutBatch
    ) -> tuple[Tensor, float]:
        """The gradient of one update on all groups, and its loss."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        references = [row.tolist() for row in slow_logprobs(reference, batch)]
        engine, old = batch.sampling_logprobs.tolist(), batch.old_logprobs.tolist()
        old = [engine[i] if rollout.replayed else old[i] for i, rollout in enumerate(rollouts)]
        advantages = self.advantages(groups, old, references)

        def row_loss(i: int, logprobs: Sequence[float]) -> list[Token]:
            tokens = self.tokens(advantages[i], logprobs, old[i], engine[i])
            if self.beta and self.kl_in == "loss":
                terms = [slow_kl(a, b, self.estimator) for a, b in zip(logprobs, references[i], strict=True)]
                tokens = [(v + self.beta * e, s + self.beta * g) for (v, s), (e, g) in zip(tokens, terms, strict=True)]
            share = 1 / len(logprobs) if self.aggregation == "sequence-mean" else 1.0
            return [(share * v, share * s) for v, s in tokens]

        gradient, value = slow_update(policy, batch, row_loss, self.count(batch))
        if self.entropy_coef:
            entropy_gradient, entropy = self.entropy(policy, batch)
            return gradient - self.entropy_coef * entropy_gradient, value - self.entropy_coef * entropy
        return gradient, value

    def entropy(self, policy: Policy, batch: RolloutBatch) -> tuple[Tensor, float]:
        """Of the tokens in the loss, added up as their losses are: gradient and value, by autograd over all logits."""
        policy.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for i, row in enumerate(slow_distributions(policy, batch)):
            share = 1 / len(row) if self.aggregation == "sequence-mean" else 1.0
            for t in range(len(row)):
                if batch.loss_mask[i, t]:
                    total = total - share / self.count(batch) * (row[t].exp() * row[t]).sum()
        total.backward()
        return gradients(policy), float(total)

    def tokens(self, advantage: float, logprobs: Sequence[float], old: Sequence[float], engine: Sequence[float]) -> Any:
        """Each token's loss and slope, corrected for the engine."""
        weights = self.weights(old[: len(logprobs)], engine)
        differences = [a - b for a, b in zip(logprobs, old, strict=False)]
        if not self.of_rollout:
            of_tokens = [self.clipped(math.exp(d), advantage) for d in differences]
            return [(w * v, w * s) for w, (v, s) in zip(weights, of_tokens, strict=True)]
        value, slope = self.clipped(math.exp(math.fsum(differences) / len(differences)), advantage)
        # The ratio is in the loss of every token, and hangs on the n-th part of each logprob.
        return [(w * value, sum(weights) * slope / len(differences)) for w in weights]

    def clipped(self, rho: float, advantage: float) -> Token:
        """Loss, and its derivative by log rho."""
        if advantage > 0 and rho > 1 + self.high:
            return -(1 + self.high) * advantage, 0.0
        if advantage < 0 and rho < 1 - self.low:
            return -(1 - self.low) * advantage, 0.0
        if advantage < 0 and rho > self.dual:
            return -self.dual * advantage, 0.0
        return -rho * advantage, -rho * advantage

    def weights(self, old: Sequence[float], engine: Sequence[float]) -> list[float]:
        if self.correction == "none":
            return [1.0] * len(old)
        differences = [a - b for a, b in zip(old, engine, strict=False)]
        if self.level == "sequence":
            differences = [math.fsum(differences)] * len(old)
        if self.level == "geometric":
            differences = [math.fsum(differences) / len(old)] * len(old)
        over = self.cap if self.correction == "truncate" else 0.0
        return [math.exp(d) if math.exp(d) <= self.cap else over for d in differences]

    def advantages(self, groups: Sequence[Group], old: Any, references: Any) -> list[float]:
        found, row = [], 0
        for group in groups:
            rewards, penalties = [], []
            successes = sum(rollout.success for rollout in group.rollouts)
            decided = 0 < successes < len(group.rollouts) and len({rollout.reward for rollout in group.rollouts}) > 1
            for rollout in group.rollouts:
                penalty = 0.0
                if self.beta and self.kl_in == "reward":
                    for t in range(rollout.length):
                        penalty += slow_kl(old[row][t], references[row][t], self.estimator)[0]
                over = rollout.length - (LIMIT - self.buffer)
                late = min(over / self.buffer, 1.0) if self.buffer and over > 0 and decided else 0.0
                rewards.append(rollout.reward - late)
                penalties.append(self.beta * penalty)
                row += 1
            mean = math.fsum(penalties) / len(penalties)
            advantages = slow_advantages(rewards, self.divisor)
            found += [a - (penalty - mean) for a, penalty in zip(advantages, penalties, strict=True)]
        return found

    def count(self, batch: RolloutBatch) -> float:
        rows = sum(any(row) for row in batch.loss_mask.tolist())
        tokens = sum(sum(row) for row in batch.loss_mask.tolist())
        return {"token-mean": tokens, "constant": rows * LIMIT}.get(self.aggregation, rows)


@dataclass(frozen=True)
class SlowMiniRL(Slow):
    divisor: str = "none"
    aggregation: str = "sequence-sum"
    high: float = 0.27
    cap: float = 5.0
    weighs: bool = True
    clips: bool = True

    def tokens(self, advantage: float, logprobs: Sequence[float], old: Sequence[float], engine: Sequence[float]) -> Any:
        found = []
        weights = self.weights(old[: len(logprobs)], engine)
        for weight, logprob, old_logprob, engine_logprob in zip(weights, logprobs, old, engine, strict=False):
            if self.weighs:
                weight *= min(math.exp(logprob - engine_logprob), self.cap)
            rho = math.exp(logprob - old_logprob)
            outside = (advantage > 0 and rho > 1 + self.high) or (advantage < 0 and rho < 1 - self.low)
            if self.clips and outside:
                weight = 0.0
            found.append((-weight * advantage * logprob, -weight * advantage))
        return found


@dataclass(frozen=True)
class SlowCISPO(Slow):
    cap_of_ratio: float = 5.0

    def tokens(self, advantage: float, logprobs: Sequence[float], old: Sequence[float], engine: Sequence[float]) -> Any:
        found = []
        for weight, logprob, other in zip(self.weights(old[: len(logprobs)], engine), logprobs, old, strict=False):
            weight *= min(math.exp(logprob - other), self.cap_of_ratio)
            found.append((-weight * advantage * logprob, -weight * advantage))
        return found


SLOW = {
    "cispo": SlowCISPO(),
    "dapo": Slow(high=0.28),
    "dr-grpo": Slow(divisor="none", aggregation="constant"),
    "grpo": Slow(aggregation="sequence-mean"),
    "gspo": Slow(aggregation="sequence-mean", low=3e-4, high=4e-4, of_rollout=True),
    "kl": Slow(high=0.28, beta=0.04),
    "maxrl": Slow(divisor="mean", aggregation="constant"),
    "minirl": SlowMiniRL(),
    "replay": Slow(high=0.28),
}
"""Every algorithm with its defaults."""


def off_policy(batch: RolloutBatch, policy: Policy) -> RolloutBatch:
    """The batch with old and engine's logprobs that are not the policy's; replayed rows keep those of their record."""
    engine = with_engine_logprobs(batch, policy).sampling_logprobs
    engine = torch.where(batch.replayed[:, None], batch.sampling_logprobs, engine)
    return with_old_logprobs(replace(batch, sampling_logprobs=engine), policy)


def assert_update_is(module: Any, slow: Any, groups: Sequence[Group] | None = None) -> dict[str, float]:
    """That one rollout step of a module gives the gradient and the loss of a slow one; gives its metrics.

    The policy has moved since its reference was taken, old policy and engine are apart from it and from each other.
    """
    groups = random_groups() if groups is None else groups
    moved = moved_policy()
    batch = off_policy(module.make_batch(groups, SAMPLING), moved)
    recorder, metrics = GradientRecorder(), StepMetrics()
    step = RolloutStep(0, tuple(groups), batch, {})
    fit(module, make_policy(max_tokens=40), [step], [MoveTo(moved), recorder, metrics])
    gradient, loss = slow.update(moved, make_policy(), groups, batch)
    assert float(gradient.norm()) > 1e-3
    assert float((recorder.gradients[0] - gradient).norm() / gradient.norm()) < 1e-5
    assert abs(metrics.steps[0]["train/loss"] - loss) < 1e-5 * max(1.0, abs(loss))
    return metrics.steps[0]
