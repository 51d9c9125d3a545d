"""Evaluates a policy on named problem sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import pyarrow as pa

from rloop_lightning.evaluation.record import problem_table
from rloop_lightning.evaluation.samples import SampleCompletion, sample_completions
from rloop_lightning.evaluation.set_metrics import set_metrics
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost
from rloop_lightning.seeds import derive_seed
from rloop_lightning.system.fields import (
    LeftOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    check_fields,
)
from rloop_lightning.types import Group, Problem, SamplingParams


@dataclass(frozen=True)
class EvaluationConfig:
    """How policies are evaluated, between phases and during explorations.

    Args:
        every_n_steps: rollout steps between evaluations during an exploration; 0 evaluates between phases only.
        samples: rollouts per problem.
        k: the values of k for pass@k, each at most `samples`; pass@1 is always measured.
        temperature: sampling temperature; 0 is greedy and needs `samples` 1; null takes --engine.temperature.
        top_k: sample from the k most likely tokens; 0 is off; null takes --engine.top_k.
        top_p: sample from the most likely tokens whose probabilities reach this sum; 1 is off; null takes
            --engine.top_p.
        max_new_tokens: completion length limit, tokens; null takes --engine.max_new_tokens.
        sets: evaluation sets between phases, or of rloop-eval; null takes all sets of the data.
        sets_inside: evaluation sets during an exploration; null takes `sets`.
        max_problems: use only the first `max_problems` problems of a set; 0 uses all.
    """

    every_n_steps: NonNegativeInt = 0
    samples: PositiveInt = 32
    k: tuple[PositiveInt, ...] = (1, 8, 32)
    temperature: NonNegativeFloat | None = None
    top_k: NonNegativeInt | None = None
    top_p: LeftOpenUnitInterval | None = None
    max_new_tokens: PositiveInt | None = None
    sets: list[str] | None = None
    sets_inside: list[str] | None = None
    max_problems: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_fields(self, "--eval")
        wrong = []
        if not self.k or max(self.k) > self.samples:
            wrong.append(f"--eval.k must lie between 1 and --eval.samples ({self.samples}), got {list(self.k)}")
        if self.temperature == 0 and self.samples > 1:
            wrong.append(
                "--eval.temperature 0 is greedy: all rollouts of a problem are the same, and pass@k is pass@1; set "
                f"--eval.samples 1 and --eval.k [1], got {self.samples} and {list(self.k)}"
            )
        if wrong:
            raise ValueError("\n".join(wrong))

    def problems_of(self, size: int) -> int:
        """How many problems of a set of this size are used."""
        return min(size, self.max_problems) if self.max_problems else size

    def sampling(self, training: SamplingParams) -> SamplingParams:
        """The sampling of an evaluation.

        Args:
            training: the engine's settings, which the fields that are null take.
        """
        own: dict[str, Any] = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
        }
        chosen = {name: value for name, value in own.items() if value is not None}
        return replace(training, report_routed_experts=False, report_kept_tokens=False, **chosen)


@dataclass(frozen=True)
class SetEvaluation:
    """A policy's evaluation on one set.

    Args:
        metrics: by name, `eval/SET/...`.
        problems: one row per problem (`record.problem_table`).
        samples: some of its completions, for loggers.
        metrics_s: time to compute the metrics, seconds.
    """

    metrics: Mapping[str, float]
    problems: pa.Table
    samples: Sequence[SampleCompletion] = ()
    metrics_s: float = 0.0


class Evaluator:
    """Evaluates the current policy. Every evaluation uses the same seed, so that policies are comparable."""

    def __init__(
        self, sampler: GroupSampler, sets: Mapping[str, Sequence[Problem]], config: EvaluationConfig, seed: int
    ) -> None:
        self.sampler = sampler
        self.sets = sets
        self.config = config
        self.seed = seed

    def __call__(self, name: str, cost: SamplingCost) -> SetEvaluation:
        """Evaluate on the set `name`. Adds the cost to `cost`.

        The metrics are those of `set_metrics`, as `eval/SET/NAME`.
        """
        problems, sampling = self.request(name)
        groups = self.sampler.sample(problems, self.config.samples, sampling, cost)
        return self.measured(name, groups, sampling)

    def request(self, name: str) -> tuple[Sequence[Problem], SamplingParams]:
        """What an evaluation on the set `name` samples: the problems, and how."""
        sampling = self.config.sampling(self.sampler.engine.sampling(derive_seed(self.seed, "evaluate", name)))
        return self.sets[name][: self.config.max_problems or None], sampling

    def measured(self, name: str, groups: Sequence[Group], sampling: SamplingParams) -> SetEvaluation:
        """The evaluation on the set `name`, from the groups that `request` asks for."""
        started = perf_counter()
        found = set_metrics(groups, self.sampler.reward, self.config.k)
        metrics = {f"eval/{name}/{key}": value for key, value in found.items()}
        took = perf_counter() - started
        return SetEvaluation(metrics, problem_table(name, groups, sampling), sample_completions(groups), took)
