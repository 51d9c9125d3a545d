"""The interface of rollout engines: problems in, sampled completions with their logprobs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from rloop_lightning.model.policy import Policy
from rloop_lightning.system.fields import (
    LeftOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    check_fields,
)
from rloop_lightning.types import Problem, Rollout, SamplingParams


class RolloutEngine(ABC):
    """Generates rollouts with a policy's current weights, and stores the sampling settings of exploration.

    Args:
        max_new_tokens: completion length limit, tokens.
        temperature: sampling temperature of exploration; 0 is greedy.
        top_k: sample from the k most likely tokens; 0 is off.
        top_p: sample from the most likely tokens whose probabilities reach this sum; 1 is off.
    """

    def __init__(
        self,
        *,
        max_new_tokens: PositiveInt = 64,
        temperature: NonNegativeFloat = 1.0,
        top_k: NonNegativeInt = 0,
        top_p: LeftOpenUnitInterval = 1.0,
    ) -> None:
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        check_fields(self, "--engine")

    def sampling(self, seed: int) -> SamplingParams:
        """The engine's sampling settings with a seed."""
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=seed,
        )

    reports_routed_experts = False
    """Whether the engine can report `Rollout.routed_experts`, which routing replay R3 needs."""

    on_progress: Callable[[int, int], None] | None = None
    """Called during `generate` with the numbers of tokens and of complete rollouts since the last call, for progress
    bars. An engine that can't tell before the end need not call it."""

    def report(self, tokens: int, rollouts: int) -> None:
        """Report progress to whoever follows it."""
        if self.on_progress is not None:
            self.on_progress(tokens, rollouts)

    def validate_with(self, policy: Policy) -> list[str]:
        """Conflicts of the settings with this policy, one message each, naming the flag and the fix."""
        return []

    @abstractmethod
    def bind(self, policy: Policy) -> None:
        """Generate with this policy from now on."""

    @abstractmethod
    def sync(self) -> None:
        """Update the engine to the policy's current weights. Call it after every change of the weights."""

    @abstractmethod
    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        """n rollouts of each problem, problem-major: rollout g of problem p is element p * n + g.

        Each token's logprob is under the distribution it was sampled from, after temperature, top-k and top-p. The same
        seed, weights and engine give the same rollouts.
        """
