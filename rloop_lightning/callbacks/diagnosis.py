"""Why a phase fails, in words and numbers: from the metrics of its training steps to a cause and options that help.

    found = diagnose(rows_of_metrics_csv, Phase(flag="--algo", lr=0.01, max_new_tokens=64))
    found.cause         # "the policy diverged: from step 3 to step 7 the success rate fell from 0.31 to 0 ..."
    found.at_resume     # ("--algo.lr 0.001",)

The rules are in order: the first one that holds names the cause. They read metrics only, so a resumed run finds the
same cause as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rloop_lightning.callbacks.trends import Fall, Steps, changes, fall, rollouts_in, surge, total

# Most Adam runs diverge above this learning rate, whatever the model.
_SAFE_LR = 1e-4
# The smallest learning rate in use for language models.
_SMALLEST_LR = 1e-7
# Reinforcement learning in bfloat16 leaves most weights as they are. Below this share, it has no effect.
_HARDLY_ANY = 0.01
_NEARLY_ALL = 0.95
# Engine and trainer of one policy differ by rounding. At this KL divergence, nats per token, they are two policies.
_ENGINE_APART = 0.05


@dataclass(frozen=True)
class Phase:
    """What the metrics of a phase do not say.

    Args:
        flag: the group of its settings, `--algo` or `--consolidate`.
        lr: its learning rate.
        max_new_tokens: completion length limit, tokens.
        problems_per_step: groups that a rollout step needs.
        rollouts_per_problem: rollouts per group.
        max_generation_batches: limit of dynamic sampling, in rollout steps.
        stop_above: the gradient norm that ends the phase.
        not_finite: weights or logits are NaN or infinite.
        too_few_groups: the last step had too few groups to train on.
        ended_by_gradient: a skipped update ended the phase.
        share_changed: the share of the weights that the phase changed; None if it made no step.
    """

    flag: str
    lr: float
    max_new_tokens: int = 0
    problems_per_step: int = 1
    rollouts_per_problem: int = 1
    max_generation_batches: int = 1
    stop_above: float | None = None
    not_finite: bool = False
    too_few_groups: bool = False
    ended_by_gradient: bool = False
    share_changed: float | None = None

    @property
    def lower_lr(self) -> str:
        """A learning rate to try after a divergence."""
        return f"{self.flag}.lr {min(self.lr / 10, _SAFE_LR):.0e}"


@dataclass(frozen=True)
class Diagnosis:
    """A cause and what helps.

    Args:
        cause: a sentence with its numbers, without a full stop.
        at_resume: options that help and that a resume accepts; alternatives.
        in_new_run: options that help in a new run only; alternatives.
        last_good_step: the last training step before the cause showed; None if it was there from the start or does not
            spoil the policy. A resume from a later checkpoint repeats the failure.
    """

    cause: str
    at_resume: tuple[str, ...] = ()
    in_new_run: tuple[str, ...] = ()
    last_good_step: int | None = None


def diagnose(steps: Steps, phase: Phase) -> Diagnosis | None:
    """The cause of a phase's failure; None if its metrics show none.

    Args:
        steps: the metrics of each training step, with its number under `step`, in order.
        phase: what else is known.
    """
    for rule in _RULES:
        if found := rule(steps, phase):
            return found
    return None


def first_step_faults(metrics: Mapping[str, float], phase: Phase) -> list[Diagnosis]:
    """Why the first rollout step of a run gives nothing to learn from; empty if it gives something.

    Args:
        metrics: the metrics of the step.
    """
    steps = [metrics]
    found = [_nothing_ends(steps, phase), _no_success(steps, phase), _always_right(steps, phase)]
    return list(dict.fromkeys(one for one in found if one is not None))


def _always_right(steps: Steps, phase: Phase) -> Diagnosis | None:
    """Every rollout is a success."""
    count = rollouts_in(steps)
    if not count or _rate(steps) < 1:
        return None
    return Diagnosis(
        f"all {count:,} rollouts are right: the problems are too easy for this policy, or the reward always pays",
        in_new_run=("harder problems (--data)", "another --reward"),
    )


def _not_finite(steps: Steps, phase: Phase) -> Diagnosis | None:
    if not phase.not_finite:
        return None
    if not any("train/lr" in step for step in steps):
        return Diagnosis(
            "the policy was not trained before, so the model itself computes NaN on these prompts",
            in_new_run=("--policy.dtype float32 --engine.dtype float32", "--policy.attn_implementation eager"),
        )
    worse = fall(steps) or surge(steps)
    last = steps[-1]["step"] - 1
    if worse is None:
        cause = (
            f"the metrics up to step {last + 1} show no divergence: one update with {phase.flag}.lr {phase.lr:g} was "
            "too large, or a callback of your own changed the weights (--trainer.callbacks)"
        )
        return Diagnosis(cause, at_resume=(phase.lower_lr,), last_good_step=last)
    return Diagnosis(
        f"the policy diverged{_told(steps, worse)}",
        at_resume=(phase.lower_lr,),
        last_good_step=min(worse.last_good, last),
    )


def _unchanged(steps: Steps, phase: Phase) -> Diagnosis | None:
    """Training changed (nearly) no weight."""
    if phase.share_changed is None or phase.share_changed >= _HARDLY_ANY:
        return None
    norms = [step["grad/norm_preclip_max"] for step in steps if "grad/norm_preclip_max" in step]
    if not any("train/loss" in step for step in steps):
        return _not_updated(int(total(steps, "grad/skipped_updates")), norms, phase)
    if norms and max(norms) == 0:  # other rules tell why
        return None
    return Diagnosis(
        f"the policy hardly changed: of its weights, {phase.share_changed:.2%} are not what they were, because updates "
        f"of {phase.flag}.lr {phase.lr:g} are lost in rounding",
        at_resume=(f"{phase.flag}.lr {max(100 * phase.lr, _SMALLEST_LR):.0e}",),
        in_new_run=("--policy.dtype float32 (with --trainer.precision bf16-mixed)",),
    )


def _no_gradient(steps: Steps, phase: Phase) -> Diagnosis | None:
    """All gradients are 0. Weight decay may change the weights all the same."""
    norms = [step["grad/norm_preclip_max"] for step in steps if "grad/norm_preclip_max" in step]
    if not norms or max(norms) > 0:
        return None
    return Diagnosis(
        "the policy learnt nothing: every gradient was 0, because all rollouts of each group had the same reward "
        f"(success rate {_rate(steps):.3g} over {rollouts_in(steps):,} rollouts)",
        at_resume=("--algo.dynamic_sampling true", _more_rollouts(phase)),
    )


def _not_updated(skipped: int, norms: Sequence[float], phase: Phase) -> Diagnosis:
    """No optimizer step was made."""
    if skipped:
        largest = f"; largest gradient norm {max(norms):.3g}" if norms else ""
        return Diagnosis(
            f"the policy did not change: every optimizer step was skipped ({skipped} in all{largest})",
            at_resume=(_bound(phase, norms), phase.lower_lr),
        )
    return Diagnosis(
        "the policy did not change: no rollout had a token in the loss",
        in_new_run=("--engine.max_new_tokens with a larger limit", "--algo.mask_truncated false"),
    )


def _ended_by_gradient(steps: Steps, phase: Phase) -> Diagnosis | None:
    if not phase.ended_by_gradient:
        return None
    last, bound = steps[-1], phase.stop_above
    norm = last.get("grad/norm_preclip_max", 0.0)
    before = [step["grad/norm_preclip_max"] for step in steps[:-1] if "grad/norm_preclip_max" in step]
    if bound is None or norm <= bound:
        return Diagnosis(
            f"a loss or gradient of step {last['step']} is NaN or infinite{_told(steps, fall(steps))}",
            at_resume=(phase.lower_lr, "--gradient.stop_on_nonfinite false"),
        )
    usual = sorted(before)[len(before) // 2] if before else 0.0
    than = f", {norm / usual:.3g} times the median of the steps before" if usual else ""
    return Diagnosis(
        f"the gradient norm {norm:.3g} of step {last['step']} exceeds --gradient.stop_above {bound:g}"
        f"{than}{_told(steps, fall(steps))}",
        at_resume=(phase.lower_lr, _bound(phase, [*before, norm])),
    )


def _diverged(steps: Steps, phase: Phase) -> Diagnosis | None:
    worse = fall(steps)
    if worse is None:
        return None
    options = [phase.lower_lr]
    if worse.before.get("policy/engine_kl_nats", 0.0) > _ENGINE_APART:
        options.insert(0, "--engine.dtype float32")
    return Diagnosis(
        f"the policy diverged{_told(steps, worse)}", at_resume=tuple(options), last_good_step=worse.last_good
    )


def _no_success(steps: Steps, phase: Phase) -> Diagnosis | None:
    """No rollout of the phase was a success."""
    count = rollouts_in(steps)
    if not count or _rate(steps) > 0:
        return None
    if found := _nothing_ends(steps, phase):
        return found
    if total(steps, "reward/unparsable") >= count:
        return Diagnosis(
            f"the reward never pays: in none of {count:,} completions could an answer be read",
            in_new_run=("--data.instruction that asks for the answer's form", "--reward.extract", "another --reward"),
        )
    return Diagnosis(
        f"no success in {count:,} rollouts since the start: the problems are too hard for this policy, or the reward "
        "never pays (see the sample completions in the log, --loop.show_completions)",
        at_resume=(_more_rollouts(phase),),
        in_new_run=("easier problems (--data)", "another --reward", "a policy that was fine-tuned on such problems"),
    )


def _nothing_ends(steps: Steps, phase: Phase) -> Diagnosis | None:
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


def _too_few_groups(steps: Steps, phase: Phase) -> Diagnosis | None:
    if not phase.too_few_groups:
        return None
    last = steps[-1]
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
        at_resume=(*more, _more_rollouts(phase), "--loop.on_too_few_groups end_phase"),
        in_new_run=("easier problems (--data)",),
    )


_RULES: tuple[Callable[[Steps, Phase], Diagnosis | None], ...] = (
    _not_finite,
    _unchanged,
    _ended_by_gradient,
    _diverged,
    _no_success,
    _too_few_groups,
    _no_gradient,
)


def _told(steps: Steps, worse: Fall | None) -> str:
    """The numbers of a fall, as a clause; without one, how the metrics changed from the first to the last step."""
    told = changes(steps, worse.before if worse else None)
    return f": {told}" if told else ""


def _rate(steps: Steps) -> float:
    """The success rate over all rollouts."""
    return total(steps, "rollout/success_rate", weights="rollout/generated_rollouts") / max(rollouts_in(steps), 1)


def _more_rollouts(phase: Phase) -> str:
    return f"--loop.rollouts_per_problem {2 * phase.rollouts_per_problem}"


def _bound(phase: Phase, norms: Sequence[float]) -> str:
    """A bound of the gradient norm that the phase would not have exceeded."""
    return f"--gradient.stop_above {float(f'{10 * max(norms):.2g}'):g}" if norms else "--gradient.stop_above null"
