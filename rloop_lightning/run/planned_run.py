"""The memory plan of a run against the memory at hand: shown by --plan, refused if it can't fit, taken by `auto`.

planned = PlannedRun.of(parts, policy_config, plan_config, precision=..., device=...)
planned.lines()                     # what --plan prints
planned.faults()                    # why the run does not fit, and what to change
planned.tokens(), planned.rows()    # what `auto` stands for
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.context import context_of
from rloop_lightning.model.libraries import library_errors
from rloop_lightning.model.policy_weights import PolicyWeights
from rloop_lightning.run.communication import Work
from rloop_lightning.run.memory_advice import advices
from rloop_lightning.run.memory_forecast import ROWS, TOKENS
from rloop_lightning.run.memory_plan import MemoryPlan
from rloop_lightning.run.memory_setup import AUTO, PROBLEMS, PROMPT_TOKENS, memory_plan, model_of
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.plan_config import PlanConfig
from rloop_lightning.run.plan_ranks import ONE_RANK, PlannedRanks, RankWeights, pushed_bytes
from rloop_lightning.run.plan_text import SHARE, communication_lines, plan_blocks, size_text
from rloop_lightning.run.simulated_plan import SimulatedPlan
from rloop_lightning.system.memory import available_memory

_LEARNING_RATE = "an adapter takes about 10 times the learning rate of full fine-tuning (--algo.lr, --consolidate.lr)"


@dataclass(frozen=True)
class PlannedRun:
    """A run's plan and the memory that it has.

    Args:
        policy: the policy's settings.
        parts: the parts of the run.
        model: the model without its weights, on the device meta.
        plan: None if the model has layers that are not counted.
        limit: bytes at hand.
        source: where the limit is from, for messages.
        knows_problems: whether the problems are read, so that no more rollouts count than are asked for at once.
    """

    policy: PolicyConfig
    parts: Parts
    model: Any
    plan: MemoryPlan | None
    limit: int
    source: str
    knows_problems: bool = False

    @classmethod
    def of(
        cls,
        parts: Parts,
        policy: PolicyConfig,
        plan: PlanConfig,
        *,
        precision: Any,
        device: torch.device,
        knows_problems: bool,
        ranks: PlannedRanks = ONE_RANK,
    ) -> Self:
        """Plan a run.

        Args:
            precision: --trainer.precision.
            device: the device to plan for, which need not exist if `plan.memory` is given.
            knows_problems: whether the problems may be read.
            ranks: the processes that train.

        Raises:
            ValueError: the model's config can't be used; names all errors.
        """
        with library_errors("config.json describes no model that can be made"):
            model = model_of(policy)
        found = memory_plan(
            model,
            policy,
            parts,
            plan,
            precision=precision,
            device=device.type,
            knows_problems=knows_problems,
            ranks=ranks,
        )
        limit, source = plan.limit, f"{plan.memory} (--plan.memory)"
        if limit is None:
            on_gpu = device.type == "cuda"
            limit = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory() // ranks.devices
            each = f" for each of {ranks.devices} processes" if ranks.devices > 1 and not on_gpu else ""
            source = f"{size_text(limit)} free on {device.type}{each}"
        planned = cls(policy, parts, model, found, limit, source, knows_problems)
        if found is None or not knows_problems:
            return planned
        return replace(planned, plan=found.with_(rows=min(found.setup.rows, planned._most_rows())))

    def with_parts(self, parts: Parts) -> Self:
        """The same for rendered parts, with the lengths of their prompts and completions."""
        if self.plan is None or not parts.prompt_lengths:
            return replace(self, parts=parts)
        longest = max(length for _, length in parts.prompt_lengths)
        limit = parts.engine.sampling(seed=0).max_new_tokens
        return replace(self, parts=parts, plan=self.plan.with_(prompt=max(1, longest), completion=limit))

    def resolved(self) -> MemoryPlan | None:
        """The plan with the figures that `auto` stands for, as far as some fit."""
        plan = self.plan
        if plan is None:
            return None
        if self.policy.max_tokens_per_micro_batch == AUTO:
            plan = plan.with_(tokens=plan.tokens_within(SHARE * self.limit) or 1)
        if getattr(self.parts.engine, "max_rows", None) == AUTO:
            plan = plan.with_(rows=plan.rows_within(SHARE * self.limit, self._most_rows()) or 1)
        return plan

    def tokens(self) -> int:
        """The token budget of micro-batches that `auto` stands for.

        Raises:
            ValueError: not one rollout fits, or the model is not counted.
        """
        return self._figure(TOKENS, lambda plan: plan.tokens_within(SHARE * self.limit))

    def rows(self) -> int:
        """The rollouts decoded at once that `auto` stands for.

        Raises:
            ValueError: not one fits, or the model is not counted.
        """
        return self._figure(ROWS, lambda plan: plan.rows_within(SHARE * self.limit, self._most_rows()))

    def faults(self) -> list[str]:
        """Why the run does not fit the memory, with what to change; empty if it fits or is not counted."""
        plan = self.resolved()
        if plan is None or plan.fits(self.limit):
            return []
        if beyond := self._beyond_context():
            return beyond  # less memory would not help
        bars = [bar for bar in (plan.training(), plan.generation()) if bar is not None]
        needs = ", ".join(f"{size_text(bar.total)} for {bar.name}" for bar in bars if bar.total > self.limit)
        flags = self.advices()
        advice = f"take one of: {'; '.join(flags)}" if flags else "take a smaller --policy.model or shorter completions"
        return [f"the run needs {needs}, and has {self.source}; {advice} (rloop-fit --plan shows all figures)"]

    def _beyond_context(self) -> list[str]:
        """Completions that the model's context has no room for, however short the prompts are."""
        context = context_of(self.model.config.get_text_config())
        limits = {"--engine": self.parts.engine.max_new_tokens, "--eval": self.parts.evaluation.max_new_tokens}
        return [
            f"{group}.max_new_tokens {limit} leaves no room for a prompt in the model's {context}; take less"
            for group, limit in limits.items()
            if limit is not None and limit >= context.tokens
        ]

    def advices(self) -> list[str]:
        """Settings with which the run fits, as flags, cheapest first."""
        plan = self.resolved()
        if plan is None:
            return []
        mixed = plan.setup.products.products != plan.setup.products.weights
        return advices(plan, self.policy, self.model, SHARE * self.limit, mixed=mixed)

    def simulated(self, config: PlanConfig) -> SimulatedPlan | None:
        """The simulation of its rollout steps that --plan asks for; None if it asks for none.

        Raises:
            ValueError: it can't be made; names the flag.
        """
        plan = self.resolved()
        if plan is None:
            return None
        return SimulatedPlan.of(self.parts, config, plan, pushed_bytes(self.model, self.policy))

    def lines(self) -> Iterator[str]:
        """What --plan prints."""
        total = sum(weight.numel() for weight in self.model.parameters())
        name = type(self.model).__name__
        plan = self.resolved()
        if plan is None:
            yield f"{name}, {total:,} weights: it has layers whose memory is not counted, so there is no plan"
            return
        setup, device = plan.setup, plan.setup.products.device
        yield f"memory plan: {name}, {total:,} weights, on {device}, {self.source}"
        yield (
            f"counted with prompts of {setup.prompt:,} tokens (--plan.prompt_tokens; default {PROMPT_TOKENS}) and "
            f"completions of {setup.completion:,} (--engine.max_new_tokens)"
        )
        if plan.ranks.number > 1:
            yield f"{plan.ranks}; figures are of one rank, and --plan.memory is that of one device"
        yield ""
        yield from plan_blocks(plan, self.limit)
        yield ""
        if plan.ranks.number > 1:
            yield from self._communication(plan)
            yield ""
        yield "Training and generation do not happen at the same time: the larger of the two is what the run needs."
        yield from self._what_fits(plan)

    def _communication(self, plan: MemoryPlan) -> Iterator[str]:
        own = RankWeights.of(PolicyWeights.planned(self.model, self.policy), self.model, self.policy, plan.ranks)
        work = Work.of(plan, self.parts.algorithm)
        pushed = pushed_bytes(self.model, self.policy) if plan.setup.generation is None else 0
        yield from communication_lines(plan, own, work, pushed)
        rollouts = (self.parts.loop.problems_per_step or PROBLEMS) * self.parts.loop.rollouts_per_problem
        of_update = rollouts // self.parts.algorithm.updates_per_step
        if of_update < plan.ranks.number:
            yield (
                f"  An update has {of_update:,} rollouts, so {plan.ranks.number - of_update:,} ranks have none; take "
                "fewer ranks, fewer --algo.updates_per_step, or more --loop.problems_per_step."
            )

    def _what_fits(self, plan: MemoryPlan) -> Iterator[str]:
        limit = SHARE * self.limit
        tokens, rows = plan.tokens_within(limit), plan.rows_within(limit)
        yield f"What fits {self.source} with {1 - SHARE:.0%} in reserve:"
        most = " (all rollouts of an optimizer step)" if tokens == plan.most_tokens else ""
        yield f"  {TOKENS} {tokens}{most}" if tokens else f"  {TOKENS}: not one rollout fits"
        if plan.setup.generation is not None:
            yield f"  {ROWS} {rows}" if rows else f"  {ROWS}: not one rollout fits"
        if plan.fits(self.limit):
            return
        flags = self.advices()
        yield "What to change, cheapest first:" if flags else "No change that is known here fits; take a smaller model."
        yield from (f"  {one}" for one in flags)
        if any("lora" in one for one in flags):
            yield f"  ({_LEARNING_RATE})"

    def _most_rows(self) -> int:
        """The rollouts of the largest request: of a rollout step, or of an evaluation if the problems are known."""
        parts = self.parts
        ranks = 1 if self.plan is None else self.plan.ranks.number
        if not self.knows_problems:
            return -(-(parts.loop.problems_per_step or PROBLEMS) * parts.loop.rollouts_per_problem // ranks)
        return -(-parts.largest_request // ranks)

    def _figure(self, flag: str, fitting: Any) -> int:
        if self.plan is None:
            name = type(self.model).__name__
            raise ValueError(f"{flag} auto: {name} has layers whose memory is not counted; give a number")
        if (figure := fitting(self.plan)) is None:
            raise ValueError("\n".join(self.faults()) or f"{flag} auto: not one rollout fits {self.source}")
        return figure
