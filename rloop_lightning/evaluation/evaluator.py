"""Evaluates a policy on named problem sets: pass@1, unbiased pass@k, entropy, length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rloop_lightning.evaluation import PassAtK
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost
from rloop_lightning.seeds import derive_seed
from rloop_lightning.system.fields import NonNegativeInt, PositiveInt, check_fields
from rloop_lightning.types import Problem


@dataclass(frozen=True)
class EvaluationConfig:
    """How policies are evaluated, between phases and during explorations.

    Args:
        every_n_steps: rollout steps between evaluations during an exploration; 0 evaluates between phases only.
        samples: rollouts per problem.
        k: the values of k for pass@k, each at most `samples`; pass@1 is always measured.
        sets: evaluation sets between phases; null takes all sets of the data.
        sets_inside: evaluation sets during an exploration; null takes `sets`.
        max_problems: use only the first `max_problems` problems of a set; 0 uses all.
    """

    every_n_steps: NonNegativeInt = 0
    samples: PositiveInt = 32
    k: tuple[PositiveInt, ...] = (1, 8, 32)
    sets: list[str] | None = None
    sets_inside: list[str] | None = None
    max_problems: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_fields(self, "--eval")
        if not self.k or max(self.k) > self.samples:
            raise ValueError(f"--eval.k must lie between 1 and --eval.samples ({self.samples}), got {list(self.k)}")


class Evaluator:
    """Evaluates the current policy. Every evaluation uses the same seed, so that policies are comparable."""

    def __init__(
        self, sampler: GroupSampler, sets: Mapping[str, Sequence[Problem]], config: EvaluationConfig, seed: int
    ) -> None:
        self.sampler = sampler
        self.sets = sets
        self.config = config
        self.seed = seed

    def __call__(self, names: Sequence[str], cost: SamplingCost) -> dict[str, float]:
        """Evaluate on the named sets.

        Returns `eval/SET/pass@K`, `.../entropy_nats`, `.../length_tokens`, and `.../pass@1_stderr`, the standard error
        of pass@1 over problems (absent for a set of one problem).
        """
        return {key: value for name in names for key, value in self._evaluate(name, cost).items()}

    def _evaluate(self, name: str, cost: SamplingCost) -> dict[str, float]:
        problems = self.sets[name][: self.config.max_problems or None]
        sampling = self.sampler.engine.sampling(derive_seed(self.seed, "evaluate", name))
        sampling = replace(sampling, report_routed_experts=False, report_kept_tokens=False)
        groups = self.sampler.sample(problems, self.config.samples, sampling, cost)
        pass_at_k = PassAtK(sorted({1, *self.config.k}))  # progress bars and `--loop.select` use pass@1
        successes = torch.tensor([group.success_count for group in groups])
        pass_at_k.update(successes, self.config.samples)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        # The mean surprise of sampled tokens estimates the entropy of the sampling distribution.
        surprise = -np.concatenate([rollout.sampling_logprobs for rollout in rollouts]).mean(dtype=np.float64)
        metrics = {key: float(value) for key, value in pass_at_k.compute().items()}
        if len(groups) > 1:
            metrics["pass@1_stderr"] = float((successes / self.config.samples).double().std() / len(groups) ** 0.5)
        metrics["entropy_nats"] = float(surprise)
        metrics["length_tokens"] = float(np.mean([rollout.length for rollout in rollouts]))
        return {f"eval/{name}/{key}": value for key, value in metrics.items()}
