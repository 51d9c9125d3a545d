"""Causes of a failing phase that lie in its rollouts: none succeeds, none ends, or all are alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rloop_lightning.callbacks.findings import Diagnosis, Phase
from rloop_lightning.callbacks.trends import Steps, rollouts_in, success_rate, total

_NEARLY_ALL = 0.95


def no_success(steps: Steps, phase: Phase) -> Diagnosis | None:
    """No rollout of the phase was a success."""
    count = rollouts_in(steps)
    if not count or success_rate(steps) > 0:
        return None
    if found := nothing_ends(steps, phase):
        return found
    if total(steps, "reward/unparsable") >= count:
        return Diagnosis(
            f"the reward never pays: in none of {count:,} completions could an answer be read",
            in_new_run=("--data.instruction that asks for the answer's form", "--reward.extract", "another --reward"),
        )
    return Diagnosis(
        f"no success in {count:,} rollouts since the start: the problems are too hard for this policy, or the reward "
        "never pays (see the sample completions in the log, --loop.show_completions)",
        at_resume=(phase.more_rollouts,),
        in_new_run=("easier problems (--data)", "another --reward", "a policy that was fine-tuned on such problems"),
    )


def nothing_ends(steps: Steps, phase: Phase) -> Diagnosis | None:
    """Nearly every completion is truncated at the length limit."""
    count = rollouts_in(steps)
    truncated = total(steps, "rollout/truncated_rate", weights="rollout/generated_rollouts")
    if not count or truncated < _NEARLY_ALL * count:
        return None
    share = "every completion is" if truncated >= count - 0.5 else f"{truncated / count:.1%} of the completions are"
    return Diagnosis(
        f"nothing ends: {share} cut at the limit of {phase.max_new_tokens:,} tokens ({count:,} rollouts)",
        in_new_run=(
            f"--engine.max_new_tokens above {phase.max_new_tokens}, if completions are cut in the middle of an answer",
            "--engine.stop, if they go on behind it",
        ),
    )


def always_right(steps: Steps, phase: Phase) -> Diagnosis | None:
    """Every rollout is a success."""
    count = rollouts_in(steps)
    if not count or success_rate(steps) < 1:
        return None
    return Diagnosis(
        f"all {count:,} rollouts are right: the problems are too easy for this policy, or the reward always pays",
        in_new_run=("harder problems (--data)", "another --reward"),
    )


def too_few_groups(steps: Steps, phase: Phase) -> Diagnosis | None:
    """A step found too few groups to train on: with both right and wrong rollouts, or of unsolved problems."""
    if not phase.too_few_groups:
        return None
    last = steps[-1]
    if found := _nothing_unsolved(last, phase):
        return found
    kept, right = last["rollout/kept_rate"], last["rollout/all_right_rate"]
    wrong = 1 - last["rollout/solved_rate"]
    groups = round(last["rollout/generated_rollouts"] / phase.rollouts_per_problem)
    counted = f"of {groups:,} problems, {right:.0%} are solved by every rollout and {wrong:.0%} by none"
    if right > wrong:
        return Diagnosis(
            f"saturated: {counted}",
            at_resume=("--loop.on_too_few_groups end_phase",),
            in_new_run=("more or harder problems (--data)", "fewer --loop.explore_steps"),
        )
    needed = math.ceil(1.2 / kept) if kept else 0  # rollout steps of problems that give one step of kept groups
    more = (f"--algo.max_generation_batches {needed}",) if needed > phase.max_generation_batches else ()
    return Diagnosis(
        f"most problems are too hard: {counted}",
        at_resume=(*more, phase.more_rollouts, "--loop.on_too_few_groups end_phase"),
        in_new_run=("easier problems (--data)",),
    )


def _nothing_unsolved(last: Mapping[str, Any], phase: Phase) -> Diagnosis | None:
    """Most groups were left out because their problem had been solved before."""
    groups = round(last["rollout/generated_rollouts"] / phase.rollouts_per_problem)
    solved = last.get("rollout/solved_groups", 0.0)
    if solved < groups / 2:
        return None
    larger = [f"--algo.unsolved_below {below}" for below in (0.1, 0.5) if below > phase.unsolved_below]
    return Diagnosis(
        f"too little is left to train on: of {groups:,} groups, {solved:,.0f} are of problems that were solved before, "
        f"and {last['rollout/unsolved_problems']:,.0f} problems are unsolved (--algo.unsolved_only)",
        at_resume=("--loop.on_too_few_groups train",),
        in_new_run=("more or harder problems (--data)", *larger[:1], "fewer --loop.explore_steps"),
    )


def no_gradient(steps: Steps, phase: Phase) -> Diagnosis | None:
    """All gradients are 0. Weight decay may change the weights all the same."""
    norms = [step["grad/norm_preclip_max"] for step in steps if "grad/norm_preclip_max" in step]
    if not norms or max(norms) > 0 or not rollouts_in(steps):  # of a consolidation, rewards are not the cause
        return None
    return Diagnosis(
        "the policy learnt nothing: every gradient was 0, because all rollouts of each group had the same reward "
        f"(success rate {success_rate(steps):.3g} over {rollouts_in(steps):,} rollouts)",
        at_resume=("--algo.dynamic_sampling true", phase.more_rollouts),
    )
