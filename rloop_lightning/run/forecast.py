"""The plan of a run in figures, logged before its first step: what is sampled, trained, evaluated and handed over.

announce(parts, policy, device)      # notes on the problems, the plan, the first prompt
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence

import torch

from rloop_lightning.algorithms.consolidation import TrainedConsolidation
from rloop_lightning.engines.base import default_completion_limit
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.quantization import count, is_quantised
from rloop_lightning.rewards.probes import RewardCheck, probe
from rloop_lightning.run.memory_forecast import memory_lines
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.state import Stage, plan
from rloop_lightning.system.terminal import one_line, printable
from rloop_lightning.types import Problem

_log = logging.getLogger(__name__)

_PROBED_PROBLEMS = 16
_PROMPT_CHARACTERS = 2000
_LARGE_SHARE = 0.3  # of all rollouts, for evaluations

_SELECTS = {
    "last": "the last policy of the run",
    "explored": "the last explored policy",
    "pass@1": "the policy with the best pass@1 on validation",
    "pass@k": "the policy with the best pass@k on validation, at the largest k",
}


def announce(parts: Parts, policy: Policy, device: torch.device) -> None:
    """Log the plan of a run with rendered parts, and warn about a reward that can't teach anything."""
    for note in parts.data.notes():
        _log.info(note)
    for line in plan_lines(parts, policy, device):
        _log.info(line)
    _log.info(f"first prompt: {printable(parts.problems[0].prompt, limit=_PROMPT_CHARACTERS)}")
    for fault in sampled_check(parts).faults():
        _log.warning(f"WARNING: {fault}")


def sampled_check(parts: Parts) -> RewardCheck:
    """The reward's verdicts on right and wrong completions of a few training problems."""
    return probe(parts.reward, spread(parts.problems, _PROBED_PROBLEMS))


def spread(problems: Sequence[Problem], count: int) -> list[Problem]:
    """At most `count` problems, evenly spread over a set."""
    return [problems[i * len(problems) // count] for i in range(count)] if len(problems) > count else list(problems)


def plan_lines(parts: Parts, policy: Policy, device: torch.device) -> list[str]:
    """The plan of a run, aligned. The parts must be rendered for the policy."""
    lines = [*_sampling(parts, policy), *_training(parts), *_evaluation(parts), *_policy(parts, policy, device)]
    width = max(len(label) for label, _ in lines)
    return ["plan:", *(f"  {label:<{width}}  {text}" for label, text in lines)]


def evaluation_rollouts(parts: Parts, names: Sequence[str]) -> int:
    """Rollouts of one evaluation on these sets."""
    problems = sum(parts.evaluation.problems_of(len(parts.evaluation_sets[name])) for name in names)
    return parts.evaluation.samples * problems


def work_left(parts: Parts, stage: Stage, steps_done: int) -> tuple[int, int]:
    """Rollout steps and evaluation rollouts that a run has left during an exploration.

    Args:
        stage: the exploration.
        steps_done: its complete rollout steps.
    """
    stages = plan(parts.loop.rounds, consolidates=parts.consolidation is not None)
    later = stages[stages.index(stage) + 1 :]
    explorations = sum(one.phase == "explore" for one in later)
    between = evaluation_rollouts(parts, parts.sets_between) * sum(one.phase == "evaluate" for one in later)
    inside = _inside_evaluations(parts) * (1 + explorations) - _inside_evaluations(parts, steps_done + 1)
    steps = parts.explore_steps * (1 + explorations) - steps_done
    return steps, between + inside * evaluation_rollouts(parts, parts.sets_inside)


def _inside_evaluations(parts: Parts, steps: int | None = None) -> int:
    """Evaluations inside an exploration before its given step, which is its last by default."""
    every = parts.evaluation.every_n_steps
    return ((parts.explore_steps if steps is None else steps) - 1) // every if every and parts.sets_inside else 0


def _sampling(parts: Parts, policy: Policy) -> Iterator[tuple[str, str]]:
    problems, rollouts, reach = parts.problems_per_step, parts.loop.rollouts_per_problem, parts.reach
    yield "visits", f"{reach.visits:.1f} per problem and exploration, {rollouts} rollouts each"
    if parts.filters:
        yield "expert set", _expert_set(parts)
    limit = parts.engine.sampling(seed=0).max_new_tokens
    tokens = _short(problems * rollouts * limit)
    yield "rollout step", f"{problems:,} problems x {rollouts} rollouts x {limit:,} tokens = {tokens} tokens at most"
    if parts.algorithm.dynamic_sampling:
        most = parts.algorithm.max_generation_batches
        yield "", f"dynamic sampling draws up to {most} times as many, to get groups with right and wrong rollouts"
    if parts.algorithm.unsolved.enabled:
        yield "", _unsolved(parts)
    if ahead := parts.loop.staleness:
        beside = "meanwhile" if parts.engine.works_beside_updates else "between updates, which saves no time"
        yield "", f"generated {ahead} step{'s' * (ahead > 1)} ahead, {beside} (--loop.staleness)"
    longest = max(length for _, length in parts.prompt_lengths)
    context = "unlimited context" if policy.context_tokens == sys.maxsize else f"context {policy.context_tokens:,}"
    is_default = limit == default_completion_limit(policy.context_tokens, longest)
    flag = f"{'the default of ' if is_default else ''}--engine.max_new_tokens"
    yield "completions", f"at most {limit:,} tokens ({flag}); longest prompt {longest:,}, {context}"


def _unsolved(parts: Parts) -> str:
    """Which problems are trained on, if it is the unsolved ones alone."""
    rule, most = parts.algorithm.unsolved, parts.algorithm.max_generation_batches
    rate = f" or with a success rate below {rule.below:g}" if rule.below else ""
    return (
        f"trains on problems without a success{rate} so far in the {rule.over} alone (--algo.unsolved_only); draws up "
        f"to {most} times as many to find them"
    )


def _expert_set(parts: Parts) -> str:
    """The largest possible expert set of a round."""
    most, reach, dynamic = parts.filter.max_per_problem, parts.reach, parts.algorithm.dynamic_sampling
    count = reach.within if parts.filter.enabled else len(parts.problems)
    size = f", at most {count * most:,} rollouts ({most} per problem)" if most else ""
    if not parts.filter.enabled:
        return f"the successes of all {count:,} problems{size}"
    rate = f"0 < success rate < {parts.filter.max_success_rate:g}"
    least = "at least " if dynamic and count < len(parts.problems) else ""
    hard = f"{least}{count:,} of {len(parts.problems):,} problems within reach ({rate}){size}"
    if parts.filter.control == "random":
        return f"as many rollouts as from {hard}; drawn at random from all successes (--filter.control random)"
    return hard


def _training(parts: Parts) -> Iterator[tuple[str, str]]:
    algorithm, rollouts = parts.algorithm, parts.problems_per_step * parts.loop.rollouts_per_problem
    updates = algorithm.updates_per_step * algorithm.passes
    rounds = f"{parts.explorations} x " if parts.explorations > 1 else ""
    limit = "" if parts.explore_tokens is None else f", or until {parts.explore_tokens:,} tokens are generated"
    yield (
        "exploration",
        f"{rounds}{parts.explore_steps:,} rollout steps of {updates} optimizer steps on "
        f"{rollouts // algorithm.updates_per_step:,} rollouts{limit}",
    )
    steps, warmup = parts.explore_steps, algorithm.warmup_steps
    if warmup > steps:
        yield "", f"--algo.warmup_steps {warmup:,} is more: the learning rate ends at {steps / warmup:.0%} of --algo.lr"
    if limit and algorithm.lr_schedule != "constant":
        yield (
            "",
            f"--algo.lr_schedule {algorithm.lr_schedule} runs over {steps:,} steps, though tokens may end it before",
        )
    if parts.consolidation is not None:
        yield "consolidation", parts.consolidation.plan()


def _evaluation(parts: Parts) -> Iterator[tuple[str, str]]:
    if parts.sets_between:
        stages = plan(parts.loop.rounds, consolidates=parts.consolidation is not None)
        count = sum(stage.phase == "evaluate" for stage in stages)
        once, inside = (evaluation_rollouts(parts, names) for names in (parts.sets_between, parts.sets_inside))
        inside_count = parts.explorations * _inside_evaluations(parts)
        yield "evaluation", f"{count} times between phases on {_named(parts.sets_between)}: {once:,} rollouts each"
        when = f"{inside_count} times inside explorations on {_named(parts.sets_inside)}: {inside:,} rollouts each"
        yield "", when if inside_count else "not inside explorations (--eval.every_n_steps)"
        total = count * once + inside_count * inside
        explored = parts.explorations * parts.explore_steps * parts.problems_per_step * parts.loop.rollouts_per_problem
        share = total / (total + explored)
        hint = "; --eval.samples and --eval.max_problems lower it" if share > _LARGE_SHARE else ""
        yield "", f"{parts.evaluation.samples} per problem, {total:,} in all, {share:.0%} of the run's rollouts{hint}"
    else:
        yield "evaluation", "NOTHING IS EVALUATED; name a set by --data.eval, or hold one out by --data.validation_size"
    select = parts.loop.select
    yield "hands over", f"{_SELECTS.get(select, select)} (--loop.select)"


def _named(sets: Sequence[str]) -> str:
    return ", ".join(map(one_line, sets))


def _policy(parts: Parts, policy: Policy, device: torch.device) -> Iterator[tuple[str, str]]:
    total = sum(map(count, policy.parameters()))
    dtype = str(next(policy.parameters()).dtype).removeprefix("torch.")
    if any(map(is_quantised, policy.parameters())):
        dtype += " and NF4"
    mixed = "" if policy.mixed_precision is None else f", products in {policy.mixed_precision}".replace("torch.", "")
    yield "policy", f"{type(policy.model).__name__}, {_short(total)} parameters, {dtype}{mixed}, on {device}"
    if policy.adapter is not None:
        yield from _adapter(parts, policy)
    yield from memory_lines(parts, policy, device)


def _adapter(parts: Parts, policy: Policy) -> Iterator[tuple[str, str]]:
    assert policy.adapter is not None
    config, layers = policy.adapter.config, len(policy.adapter.parameters) // 2
    trained = sum(weight.numel() for weight in policy.adapter.parameters.values())
    yield "adapter", f"LoRA of rank {config.r} in {layers} layers, {_short(trained)} trained weights"
    rates = f"--algo.lr is {parts.algorithm.lr:g}"
    if isinstance(parts.consolidation, TrainedConsolidation):
        rates += f", --consolidate.lr {parts.consolidation.lr:g}"
    yield "", f"an adapter takes about 10 times the learning rate of full fine-tuning; {rates}"


def _short(count: int) -> str:
    """A count in three digits: 4.19 million."""
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,}"
