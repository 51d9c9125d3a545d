"""The parts of a run, and checks that they are compatible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rloop_lightning.algorithms.average import Average
from rloop_lightning.algorithms.base import Algorithm
from rloop_lightning.algorithms.consolidation import Consolidation
from rloop_lightning.algorithms.distil import Distil
from rloop_lightning.algorithms.fine_tuning import FineTuning
from rloop_lightning.callbacks.capture import CaptureConfig
from rloop_lightning.callbacks.gradient_norm import GradientConfig
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.readable import readable
from rloop_lightning.data.render import rendered
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.evaluation.evaluator import EvaluationConfig
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rollouts.filter import FilterConfig
from rloop_lightning.rollouts.reach import Reach
from rloop_lightning.run.completion_limit import default_limit, too_long_prompts
from rloop_lightning.run.state import LoopConfig
from rloop_lightning.types import Problem, SamplingParams

_DEFAULT_PROBLEMS_PER_STEP = 128


@dataclass(frozen=True)
class Parts:
    """All parts of a run except the policy.

    Args:
        engine: generates rollouts.
        data: the problem sets.
        reward: scores completions.
        algorithm: the RL algorithm; a copy of it trains in each round.
        consolidation: makes the policy that the next round begins with; None is plain RL.
        loop: rounds and sizes.
        filter: the selection of the expert set.
        capture: extra rollouts for the pool.
        gradient: the handling of exploding gradients.
        evaluation: how policies are evaluated.
        seed: seed of all randomness.
        prompt_lengths: ids and prompt lengths in tokens of all problems, once `rendered` has counted them.
    """

    engine: RolloutEngine
    data: ProblemSource
    reward: Reward
    algorithm: Algorithm
    consolidation: Consolidation | None
    loop: LoopConfig
    filter: FilterConfig
    capture: CaptureConfig
    gradient: GradientConfig
    evaluation: EvaluationConfig
    seed: int
    prompt_lengths: Sequence[tuple[str, int]] = ()

    @cached_property
    def problems(self) -> Sequence[Problem]:
        """The training set."""
        return self.data.train()

    @cached_property
    def evaluation_sets(self) -> Mapping[str, Sequence[Problem]]:
        return self.data.evaluation()

    @property
    def sets_between(self) -> list[str]:
        """Names of the evaluation sets between phases."""
        return list(self.evaluation_sets) if self.evaluation.sets is None else self.evaluation.sets

    @property
    def sets_inside(self) -> list[str]:
        """Names of the evaluation sets inside an exploration."""
        return self.sets_between if self.evaluation.sets_inside is None else self.evaluation.sets_inside

    @property
    def problems_per_step(self) -> int:
        """Groups that a rollout step trains on, with the default resolved."""
        return self.loop.problems_per_step or min(_DEFAULT_PROBLEMS_PER_STEP, len(self.problems))

    @property
    def filters(self) -> bool:
        """Whether rounds end with a consolidation on an expert set."""
        return self.consolidation is not None and self.consolidation.takes_experts

    @property
    def largest_request(self) -> int:
        """The most rollouts that are asked for at once: those of a rollout step, or of an evaluation of one set."""
        sets = {*self.sets_between, *self.sets_inside} & self.evaluation_sets.keys()
        problems = max((self.evaluation.problems_of(len(self.evaluation_sets[name])) for name in sets), default=0)
        return max(self.problems_per_step * self.loop.rollouts_per_problem, problems * self.evaluation.samples)

    @property
    def explorations(self) -> int:
        """Explorations of the run: one per round, or a single one without consolidation."""
        return self.loop.rounds if self.consolidation is not None else 1

    @property
    def explore_steps(self) -> int:
        """Rollout steps of each exploration."""
        return self.loop.explore_steps * self.loop.rounds // self.explorations

    @property
    def explore_tokens(self) -> int | None:
        """Generated tokens at which an exploration ends, if it has not taken its rollout steps before."""
        tokens = self.loop.explore_tokens
        return None if tokens is None else tokens * self.loop.rounds // self.explorations

    @property
    def reach(self) -> Reach:
        """The problems that the hard-problem filter can select from, by the rollouts that each gets."""
        every, chosen = self.capture.every_n_steps, self.capture.extra_problems
        captures = self.explore_steps // every if every and not 0 < chosen < len(self.problems) else 0
        return Reach(
            problems=len(self.problems),
            groups=self.explore_steps * self.problems_per_step,
            rollouts_per_problem=self.loop.rollouts_per_problem,
            max_success_rate=self.filter.max_success_rate,
            extra_rollouts=captures * self.capture.extra_rollouts,
            rounds=self.loop.rounds if self.filters and self.filter.rate_over == "run" else 1,
        )

    @property
    def hidden_sets(self) -> Sequence[str]:
        """Evaluation sets to leave out of the results table: `validation`, unless the run is judged by it."""
        judged_by = self.loop.select.startswith("pass@") or self.sets_between == ["validation"]
        return () if judged_by else ("validation",)

    def validate(self) -> list[str]:
        """Errors in the settings and their combination, one message each. Needs no model."""
        modules = [self.algorithm, *([] if self.consolidation is None else [self.consolidation])]
        invalid = [message for module in modules for message in module.invalid()]
        if not self.problems:
            return [*invalid, "--data: there is no problem to train on; give a source that has a training set"]
        sizes = [*self._check_sizes(), *self._check_truncation(), *self._check_staleness(), *self._check_reach()]
        return [*invalid, *sizes, *self._check_sets(), *self._check_kind()]

    def readable(self) -> tuple[Parts, list[str]]:
        """The same parts without problems that the reward can't read, and errors about such problems."""
        data, wrong = readable(self.data, self.reward.unusable, f"--reward {type(self.reward).__name__}")
        return replace(self, data=data), wrong

    def rendered(self, policy: Policy) -> Parts:
        """The same parts with prompts rendered for this policy, without problems that are too long.

        If the engine's completion limit is null, it is set to what the longest prompt leaves of the policy's context.

        Raises:
            ValueError: a set can't be rendered, all its problems are too long, or the longest prompt leaves too little.
        """
        data = rendered(self.data, policy.tokenizer)
        if data is self.data:
            return self
        problems = [problem for found in (data.train(), *data.evaluation().values()) for problem in found]
        lengths = [(problem.id, len(policy.prompt_ids(problem))) for problem in problems]
        if self.engine.max_new_tokens is None:
            self.engine.max_new_tokens = default_limit(lengths, policy.context_tokens)
        limit, trained = self.engine.max_new_tokens, len(data.train())
        limits = [limit] * trained + [self.evaluation.max_new_tokens or limit] * (len(lengths) - trained)
        self.engine.longest_rollout = max(length + new for (_, length), new in zip(lengths, limits, strict=True))
        return replace(self, data=data, prompt_lengths=lengths)

    def validate_with(self, policy: Policy) -> list[str]:
        """Conflicts with this policy, one message each. Call it on rendered parts."""
        return [
            *self.algorithm.validate(self.engine.sampling(seed=0)),
            *self._check_modules(policy),
            *self.engine.validate_with(policy),
            *self._check_routing(policy),
            *self._too_few_problems(),
            *self._too_long_prompts(policy),
        ]

    def _check_truncation(self) -> Iterator[str]:
        """An engine that samples from a part of the vocabulary must say from which."""
        engine = self.engine
        # The completion limit may not be known yet.
        sampling = SamplingParams(1, temperature=engine.temperature, top_k=engine.top_k, top_p=engine.top_p)
        if sampling.truncates and not engine.reports_kept_tokens:
            yield (
                f"--engine.top_k {engine.top_k}, --engine.top_p {engine.top_p:g}: {type(engine).__name__} does not "
                "report the tokens that it kept, so ratios against it would be biased; set --engine.top_k 0 and "
                "--engine.top_p 1, or take --engine torch"
            )

    def _check_staleness(self) -> Iterator[str]:
        """Settings that contradict rollouts ahead of the updates, and updates in flight where nothing is in flight."""
        engine = self.engine
        if self.loop.staleness:
            yield from engine.beside_faults()
        if not self.loop.in_flight_updates:
            return
        if not engine.takes_updates_in_flight:
            yield (
                f"--loop.in_flight_updates true: {type(engine).__name__} does not generate beside the updates; take an "
                "engine with a process of its own, or leave it out"
            )
        elif self.loop.staleness == 0:
            yield "--loop.in_flight_updates true needs --loop.staleness of at least 1: nothing is generated ahead"

    def _check_kind(self) -> Iterator[str]:
        """A consolidation that the loop can't run."""
        if self.consolidation is not None and not isinstance(self.consolidation, FineTuning | Average | Distil):
            name = type(self.consolidation).__name__
            yield f"--consolidate {name}: is no FineTuning, Average or Distil; subclass one of them (docs/extending.md)"
        if self.filter.control == "random" and not self.filters:
            yield "--filter.control random: there is no expert set without --consolidate rft, so nothing to draw"

    def _check_modules(self, policy: Policy) -> Iterator[str]:
        """What the algorithm and the consolidation can't do with this policy, or with these problems."""
        yield from self.algorithm.conflicts(policy, self.prompt_lengths[: len(self.problems)])
        if self.consolidation is not None:
            yield from self.consolidation.conflicts(policy, self.loop.rounds)

    def _check_routing(self, policy: Policy) -> Iterator[str]:
        """Parts that can't provide routed experts, which routing replay R3 needs for every rollout."""
        if not policy.wants_routed_experts:
            return
        if not self.engine.reports_routed_experts:
            engine = type(self.engine).__name__
            yield f"--policy.routing_replay r3: {engine} does not report its experts; take --engine torch, or r2"
        if self.algorithm.trains_on_stored:
            algorithm = type(self.algorithm).__name__
            yield (
                f"--policy.routing_replay r3: the stored rollouts of {algorithm} have no record of their experts; take "
                "another --algo, or r2"
            )

    def _too_long_prompts(self, policy: Policy) -> Iterator[str]:
        """Problems whose prompt and completion exceed the policy's context."""
        training = self.engine.sampling(seed=0)
        limits = {("--engine", training.max_new_tokens): self.prompt_lengths}
        if self.evaluation.max_new_tokens is not None:
            train = len(self.problems)
            limits = {
                ("--engine", training.max_new_tokens): self.prompt_lengths[:train],
                ("--eval", self.evaluation.max_new_tokens): self.prompt_lengths[train:],
            }
        for (group, limit), lengths in limits.items():
            yield from too_long_prompts(lengths, policy.context, limit, f"{group}.max_new_tokens", "--policy.model")

    def _check_sizes(self) -> Iterator[str]:
        problems, rollouts = self.problems_per_step, self.loop.rollouts_per_problem
        fewest = self.algorithm.min_rollouts_per_problem
        if rollouts < fewest:
            name = type(self.algorithm).__name__
            yield f"--loop.rollouts_per_problem must be at least {fewest} for {name}, got {rollouts}"
        if self.algorithm.updates_per_step > problems * rollouts:
            yield (
                f"--algo.updates_per_step {self.algorithm.updates_per_step} exceeds the {problems * rollouts} rollouts "
                "of a step (--loop.problems_per_step x --loop.rollouts_per_problem)"
            )
        yield from self._too_few_problems()
        if self.engine.max_new_tokens is not None:  # otherwise `validate_with` checks it
            yield from self.algorithm.validate(self.engine.sampling(seed=0))
        if self.engine.temperature == 0 and rollouts > 1:
            yield "--engine.temperature 0 makes all rollouts of a problem the same; exploration needs more than 0"
        if self.engine.top_k == 1 and rollouts > 1:
            yield "--engine.top_k 1 makes all rollouts of a problem the same; exploration needs 0 or more than 1"

    def _check_reach(self) -> Iterator[str]:
        """An expert set that is empty by arithmetic."""
        reach, loop = self.reach, self.loop
        if not self.filters or not self.filter.enabled or reach.within:
            return
        yield (
            f"--filter.max_success_rate {reach.max_success_rate:g}: no problem can be hard, so every expert set would "
            f"be empty. A problem gets at most {reach.most_rollouts} rollouts (--loop.explore_steps "
            f"{loop.explore_steps} x --loop.problems_per_step {self.problems_per_step} groups for {reach.problems:,} "
            "problems, "
            f"--loop.rollouts_per_problem {loop.rollouts_per_problem}), so the lowest success rate above 0 is "
            f"{1 / reach.most_rollouts:.1%}. Take one of: {'; '.join(reach.remedies())}; or --filter.enabled false"
        )

    def _too_few_problems(self) -> Iterator[str]:
        if self.problems_per_step > len(self.problems):
            yield (
                f"--loop.problems_per_step {self.problems_per_step} exceeds the {len(self.problems)} training "
                f"problems; give at most {len(self.problems)}, or leave it out"
            )

    def _check_sets(self) -> Iterator[str]:
        known = ", ".join(self.evaluation_sets) or "none"
        for flag, names in (("sets", self.evaluation.sets), ("sets_inside", self.evaluation.sets_inside)):
            for name in names or []:
                if name not in self.evaluation_sets:
                    yield f"--eval.{flag}: the data has no set {name!r}, it has {known}"
        if self.loop.select.startswith("pass@") and "validation" not in self.sets_between:
            yield f"--loop.select {self.loop.select} needs a set named validation among --eval.sets"
