"""The simulated time of a run's rollout steps, for `rloop-fit --plan`, with every assumption in words.

for line in SimulatedPlan.of(parts, plan_config, memory_plan, pushed).lines(): print(line)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from rloop_lightning.run.measured_run import MeasuredRun
from rloop_lightning.run.memory_plan import MemoryPlan
from rloop_lightning.run.memory_setup import PROBLEMS
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.plan_config import PlanConfig
from rloop_lightning.run.step_simulation import ENDS, Rates, Sizes, StepWork, run_steps, step_work
from rloop_lightning.seeds import derive_seed

_STALENESS = range(ENDS)
_SHARE_AT_MEDIAN, _SIGMA = 0.25, 0.8
"""Lengths without a run: log-normal; the median as a share of the limit, and the standard deviation of the log."""


@dataclass(frozen=True)
class SimulatedPlan:
    """A simulation of rollout steps.

    Args:
        sizes: of a step, and of what it runs on.
        rates: measured ones.
        lengths: number of completions by length [longest + 1], to draw from; None takes the stated distribution.
        limit: tokens of the longest completion.
        steps: rollout steps that are simulated.
        seed: of lengths and stragglers (--seed_everything).
        measured: the run that lengths and rates are from, if there is one.
        said: where the rates are from, in words.
    """

    sizes: Sizes
    rates: Rates
    lengths: np.ndarray | None
    limit: int
    steps: int
    seed: int
    measured: MeasuredRun | None
    said: Sequence[str]

    @classmethod
    def of(cls, parts: Parts, config: PlanConfig, plan: MemoryPlan, pushed: float) -> Self | None:
        """The simulation that the settings ask for; None if they ask for none.

        Args:
            plan: the memory plan of a rank.
            pushed: bytes of the weights that an engine gets.

        Raises:
            ValueError: the run to take rates from can't be used, or a rate is missing.
        """
        given = (config.generate_tokens_per_s, config.update_tokens_per_s)
        if config.from_run is None and not any(given):
            return None
        measured = None if config.from_run is None else MeasuredRun.of(Path(config.from_run).expanduser())
        if measured is None and not all(given):
            missing = "update" if given[0] else "generate"
            raise ValueError(f"--plan.{missing}_tokens_per_s is missing: give both rates, or --plan.from_run")
        rates = _rates(config, measured, pushed)
        ranks = plan.ranks.number
        sizes = Sizes(
            problems=math.ceil((parts.loop.problems_per_step or PROBLEMS) / (measured.trained if measured else 1)),
            rollouts=parts.loop.rollouts_per_problem,
            trained=measured.trained if measured else 1.0,
            engines=config.engines or _engines(parts, ranks),
            rows=plan.setup.rows,
            ranks=ranks,
        )
        lengths = None if measured is None else measured.lengths
        said = list(_said(config, measured, rates))
        return cls(sizes, rates, lengths, plan.setup.completion, config.steps, parts.seed, measured, said)

    def lines(self) -> Iterator[str]:
        """The assumptions and the table."""
        sizes = self.sizes
        yield (
            f"simulated time of a rollout step, mean of {self.steps:,} steps: {sizes.problems:,} problems x "
            f"{sizes.rollouts:,} rollouts, {_count(sizes.engines, 'engine')} of {sizes.rows:,} rollouts at once, "
            f"{_count(sizes.ranks, 'rank')}"
        )
        yield from (f"  - {line}" for line in self._assumptions())
        yield ""
        yield f"  {'':<16} {'weights pushed between steps':<40} --loop.in_flight_updates true"
        columns = f"{'step':>10}  {'trainer waits':>13} {'engines busy':>13}"
        yield f"  --loop.staleness {columns}   {columns}"
        works = self.works(sizes)
        for staleness in _STALENESS:
            found = [
                run_steps(works, staleness, self.rates.push_s, in_flight=in_flight)
                for in_flight in ((False, True) if staleness else (False,))
            ]
            cells = [f"{one.step_s:>8.3g} s  {one.waiting:>13.0%} {one.busy:>13.0%}" for one in found]
            yield f"  {staleness:<16} {'   '.join(cells)}"
        if self.measured is not None:
            yield ""
            yield self._check(self.measured)

    def works(self, sizes: Sizes) -> list[StepWork]:
        """The work of each step, and of those at the ends that do not count."""
        rng = self._generator()
        count = self.steps + 2 * ENDS
        rollouts = sizes.problems * sizes.rollouts
        return [step_work(self._draw(rng, rollouts, self.limit), sizes, self.rates, rng) for _ in range(count)]

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, "plan"))

    def _draw(self, rng: np.random.Generator, count: int, limit: int) -> list[int]:
        if self.lengths is None:
            drawn = rng.lognormal(math.log(_SHARE_AT_MEDIAN * limit), _SIGMA, count).round().astype(int)
        else:
            drawn = rng.choice(len(self.lengths), count, p=self.lengths / self.lengths.sum())
        return np.clip(drawn, 1, limit).tolist()

    def _assumptions(self) -> Iterator[str]:
        yield from self.said
        if self.lengths is None:
            yield (
                f"lengths are log-normal with a median of {_SHARE_AT_MEDIAN * self.limit:,.0f} tokens and a deviation "
                f"of {_SIGMA:g} (log), cut at {self.limit:,} (--engine.max_new_tokens); --seed_everything {self.seed}"
            )
        yield "prompts cost nothing, in generation and in updates"
        yield "a rank updates an equal share of the tokens, and communication is hidden behind it"
        if self.rates.straggler_share:
            yield (
                f"in each step, an engine or a rank takes {self.rates.straggler_slowdown:g} times as long with a "
                f"probability of {self.rates.straggler_share:.1%}; all ranks wait for the slowest"
            )
        else:
            yield "no engine and no rank is slower than the others (--plan.straggler_share)"
        yield "evaluations, captures and checkpoints do not count"
        yield "engines busy: generated tokens, as a share of what the engines generate with many rollouts all the time"

    def _check(self, measured: MeasuredRun) -> str:
        """The simulation of the measured run itself: its sizes, one engine and one rank."""
        per_step = max(1, round(measured.rollouts / measured.steps))
        sizes = Sizes(per_step, 1, measured.trained, engines=1, rows=per_step, ranks=1)
        own, rng = measured.rates(), self._generator()
        longest = len(measured.lengths)
        works = [step_work(self._draw(rng, per_step, longest), sizes, own, rng) for _ in range(self.steps + 2 * ENDS)]
        step_s = run_steps(works, 0, 0.0).step_s
        return (
            f"check: a step of {measured.name} took {measured.step_s:.3g} s in the mean of {measured.steps:,} steps "
            f"(generation, reward, update and metrics, one after the other); simulated: {step_s:.3g} s "
            f"({step_s / measured.step_s - 1:+.0%})"
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number > 1)}"


def _rates(config: PlanConfig, measured: MeasuredRun | None, pushed: float) -> Rates:
    own = Rates(math.nan, math.nan) if measured is None else measured.rates()
    return Rates(
        generate=config.generate_tokens_per_s or own.generate,
        update=config.update_tokens_per_s or own.update,
        row=config.row_tokens_per_s or math.inf,
        push_s=0.0 if config.push_gb_per_s is None else pushed / (1e9 * config.push_gb_per_s),
        reward_s=own.reward_s,
        metrics_s=own.metrics_s,
        straggler_share=config.straggler_share,
        straggler_slowdown=config.straggler_slowdown,
    )


def _engines(parts: Parts, ranks: int) -> int:
    """One engine for each address of --engine.url, else one a rank."""
    url = getattr(parts.engine, "url", "")
    return len(url.split(",")) if url else ranks


def _said(config: PlanConfig, measured: MeasuredRun | None, rates: Rates) -> Iterator[str]:
    """Where the rates are from."""
    source = "" if measured is None else f"measured in {measured.name} with one engine and one rank"
    given = "--plan.{}_tokens_per_s"
    generate = given.format("generate") if config.generate_tokens_per_s else source
    update = given.format("update") if config.update_tokens_per_s else source
    yield f"an engine with many rollouts generates {rates.generate:,.0f} tokens/s ({generate})"
    if math.isfinite(rates.row):
        yield f"a rollout that is alone gets {rates.row:,.0f} tokens/s (--plan.row_tokens_per_s)"
    else:
        yield "a rollout that is alone gets all of that (--plan.row_tokens_per_s)"
    yield f"a rank updates {rates.update:,.0f} completion tokens/s ({update})"
    if rates.push_s:
        yield f"a push of weights takes {rates.push_s:.3g} s (--plan.push_gb_per_s); all engines wait"
    else:
        yield "a push of weights takes no time (--plan.push_gb_per_s)"
    if measured is None:
        yield "the reward and metrics take no time, and every group is trained on"
    else:
        yield f"{measured.trained:.0%} of the groups are trained on, and the reward and metrics take as long as there"
        drawn = f"lengths are drawn from the {measured.lengths.sum():,} completions in its pools"
        yield f"{drawn}, cut at --engine.max_new_tokens"
