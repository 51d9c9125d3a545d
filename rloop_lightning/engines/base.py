"""What every rollout engine does: problems in, sampled completions with their logprobs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

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
    """Generates rollouts with a policy's current weights. Holds the sampling settings that exploration uses.

    Args:
        max_new_tokens: completion length limit, tokens.
        temperature: sampling temperature of exploration; 0 is greedy.
        top_k: sample among the k most likely tokens; 0 among all.
        top_p: sample among the most likely tokens that together reach this probability; 1 among all.
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
        """The engine's settings with a seed."""
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=seed,
        )

    reports_routed_experts = False
    """Whether rollouts come with `Rollout.routed_experts` where routing replay R3 wants them."""

    def validate_with(self, policy: Policy) -> list[str]:
        """What of the settings can't work with this policy, a line each, with the flag and what to do."""
        return []

    @abstractmethod
    def bind(self, policy: Policy) -> None:
        """Generate with this policy from now on."""

    @abstractmethod
    def sync(self) -> None:
        """Take over the policy's current weights; called after every change of them."""

    @abstractmethod
    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        """n rollouts of each problem, problem-major: rollout g of problem p is element p * n + g.

        Every sampled token comes with its logprob under the distribution it was sampled from, temperature, top-k and
        top-p included. The same seed, weights and engine give the same rollouts.
        """
