"""Samples the groups of a rollout step: until enough of them can be trained on, or a limit is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from rloop_lightning.rollouts.sampled_step import SampledStep
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost
from rloop_lightning.rollouts.unsolved import SuccessCounts, UnsolvedOnly
from rloop_lightning.seeds import derive_seed
from rloop_lightning.types import Group, Problem, RolloutBatch, SamplingParams

# Request slightly more groups than needed: another engine call costs more than a few spare groups.
_HEADROOM = 1.1
# If few groups are kept, the estimated share is unreliable. This bounds the groups per engine call.
_MOST_STEPS_PER_CALL = 4


class Explorer(Protocol):
    """What a stream needs from an algorithm."""

    max_generation_batches: int
    unsolved: UnsolvedOnly

    def keep_group(self, group: Group) -> bool: ...

    def replayed(self, groups: Sequence[Group], sampling: SamplingParams) -> Sequence[Group]: ...

    def make_batch(self, groups: Sequence[Group], sampling: SamplingParams) -> RolloutBatch: ...


class StepSampler:
    """Samples rollout steps one after the other.

    A step depends only on the engine's weights, on its index and on the steps before it.

    Args:
        problems: the training set; each pass over it has a new seeded order.
        problems_per_step: P, groups in the batch of a step.
        rollouts_per_problem: G, rollouts per group.
        seed: seed of the problem order and of all sampling.

    Attributes:
        counts: what the problems gave so far; an algorithm that trains on unsolved ones alone leaves the others out.
    """

    def __init__(
        self,
        sampler: GroupSampler,
        explorer: Explorer,
        problems: Sequence[Problem],
        *,
        problems_per_step: int,
        rollouts_per_problem: int,
        seed: int,
    ) -> None:
        self.sampler = sampler
        self.explorer = explorer
        self.problems = problems
        self.problems_per_step = problems_per_step
        self.rollouts_per_problem = rollouts_per_problem
        self.seed = seed
        self.counts = SuccessCounts([problem.id for problem in problems])
        self.drawn = 0  # problems drawn so far, over all passes
        self.share_kept = 1.0  # share of the latest groups that were kept; decides how many to request

    @property
    def most_groups(self) -> int:
        """The most groups that a step generates."""
        return self.problems_per_step * self.explorer.max_generation_batches

    def state_dict(self) -> dict[str, Any]:
        counts = {"counts": self.counts.state_dict()} if self.explorer.unsolved.enabled else {}
        return {"drawn": self.drawn, "share_kept": self.share_kept, **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn, self.share_kept = state["drawn"], state["share_kept"]
        if "counts" in state:
            self.counts.load_state_dict(state["counts"])

    def sample(self, index: int, version: int, before_call: Callable[..., None]) -> SampledStep:
        """Sample step `index` with the engine's weights.

        Each engine call requests as many groups as should suffice.

        Args:
            index: rollout step inside the phase, from 0.
            version: the rollout steps that these weights have trained on.
            before_call: called before each engine call as `StreamListener.sampling`.
        """
        generated: list[Group] = []
        kept: list[bool] = []
        unsolved: list[bool] = []
        cost = SamplingCost()
        self.sampler.reward_metrics()  # discards the counts of an evaluation
        while (missing := self.problems_per_step - sum(kept)) > 0 and len(generated) < self.most_groups:
            wanted = missing if self.share_kept == 1 else math.ceil(_HEADROOM * missing / self.share_kept)
            wanted = min(wanted, _MOST_STEPS_PER_CALL * self.problems_per_step, self.most_groups - len(generated))
            before_call(kept=sum(kept), needed=self.problems_per_step, drawn=len(generated), tokens=cost.tokens)
            sampling = self.sampler.engine.sampling(derive_seed(self.seed, index, len(generated)))
            groups = self.sampler.generate(self._draw(wanted), self.rollouts_per_problem, sampling, cost)
            generated += groups
            for group in groups:
                unsolved.append(self._is_unsolved(group))
                kept.append(unsolved[-1] and self.explorer.keep_group(group))
                missing -= kept[-1]
                # What the step does not need is not trained on. Its successes are not the first ones, then.
                if not kept[-1] or missing >= 0:
                    self.counts.add(group)
            self.share_kept = max(sum(kept), 1) / len(generated)
            if self.explorer.unsolved.enabled and not self._left:
                break
        counts = {f"reward/{name}": value for name, value in self.sampler.reward_metrics().items()}
        trained = min(sum(kept), self.problems_per_step)
        metrics = {
            **_step_metrics(generated, sum(kept), trained, cost),
            **self._unsolved_metrics(unsolved),
            **counts,
            **self.sampler.engine.sync_metrics,
        }
        wanted = self.problems_per_step
        return SampledStep(index, version, tuple(generated), tuple(kept), sampling, metrics, cost, wanted=wanted)

    def shortage(self, sampled: SampledStep) -> str:
        """How few groups of a step can be trained on, and why."""
        kept, groups = len(sampled.kept_groups), len(sampled.groups)
        if not self.explorer.unsolved.enabled:
            return f"only {kept} of {groups} problems gave a group with both right and wrong rollouts"
        solved = int(sampled.metrics["rollout/solved_groups"])
        left = int(sampled.metrics["rollout/unsolved_problems"])
        others = groups - kept - solved
        return (
            f"only {kept} of {groups} groups can be trained on: {solved} are of problems that were solved before "
            f"(--algo.unsolved_only)"
            + (f", {others} have no right and wrong rollouts" if others else "")
            + f"; {left:,} of {len(self.counts):,} problems are unsolved"
        )

    @property
    def _left(self) -> int:
        """Unsolved problems."""
        return self.counts.unsolved(self.explorer.unsolved.below)

    def _is_unsolved(self, group: Group) -> bool:
        """Whether a group may be trained on: whether its problem was unsolved before it."""
        rule = self.explorer.unsolved
        return not rule.enabled or self.counts.is_unsolved(group.problem.id, rule.below)

    def _unsolved_metrics(self, unsolved: Sequence[bool]) -> dict[str, float]:
        """How many groups were left out because their problem was solved before, and what is left."""
        if not self.explorer.unsolved.enabled:
            return {}
        return {
            "rollout/solved_groups": float(len(unsolved) - sum(unsolved)),
            "rollout/unsolved_problems": float(self._left),
        }

    def _draw(self, count: int) -> list[Problem]:
        """The next problems. Each pass over the training set has its own order."""
        drawn = []
        for number in range(self.drawn, self.drawn + count):
            epoch, place = divmod(number, len(self.problems))
            if place == 0 or number == self.drawn:
                order = np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(len(self.problems))
            drawn.append(self.problems[order[place]])
        self.drawn += count
        return drawn


def _step_metrics(generated: Sequence[Group], kept: int, trained: int, cost: SamplingCost) -> dict[str, float]:
    """Metrics of a rollout step, over all its rollouts, including those that are not trained on."""
    rollouts = [rollout for group in generated for rollout in group.rollouts]
    parts = rollouts[0].reward_parts
    return {
        **{f"reward/{name}_mean": float(np.mean([r.reward_parts[name] for r in rollouts])) for name in parts},
        "rollout/reward_mean": float(np.mean([rollout.reward for rollout in rollouts])),
        "rollout/success_rate": float(np.mean([rollout.success for rollout in rollouts])),
        "rollout/solved_rate": float(np.mean([group.success_count > 0 for group in generated])),
        "rollout/all_right_rate": float(np.mean([group.success_count == len(group.rollouts) for group in generated])),
        "rollout/kept_rate": kept / len(generated),
        "rollout/trained_groups": float(trained),
        "rollout/length_tokens": float(np.mean([rollout.length for rollout in rollouts])),
        "rollout/truncated_rate": float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        "rollout/generated_rollouts": float(cost.rollouts),
        "rollout/generated_tokens": float(cost.tokens),
        "time/generate_s": cost.generate_s,
        "time/reward_s": cost.reward_s,
    }
