"""Causes of a failing phase that lie in its updates: divergence, skipped updates, changes lost in rounding."""

from __future__ import annotations

from collections.abc import Sequence

from rloop_lightning.callbacks.findings import Diagnosis, Phase
from rloop_lightning.callbacks.trends import Fall, Steps, changes, fall, surge, total

# The smallest learning rate in use for language models.
_SMALLEST_LR = 1e-7
# Reinforcement learning in bfloat16 leaves most weights as they are. Below this share, it has no effect.
_HARDLY_ANY = 0.01
# Engine and trainer of one policy differ by rounding. At this KL divergence, nats per token, they are two policies.
_ENGINE_APART = 0.05


def not_finite(steps: Steps, phase: Phase) -> Diagnosis | None:
    """Weights or logits are NaN or infinite."""
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


def unchanged(steps: Steps, phase: Phase) -> Diagnosis | None:
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


def _not_updated(skipped: int, norms: Sequence[float], phase: Phase) -> Diagnosis:
    """No optimizer step was made."""
    if skipped:
        largest = f"; largest gradient norm {max(norms):.3g}" if norms else ""
        return Diagnosis(
            f"the policy did not change: every optimizer step was skipped ({skipped} in all{largest})",
            at_resume=(_bound(norms), phase.lower_lr),
        )
    return Diagnosis(
        "the policy did not change: no rollout had a token in the loss",
        in_new_run=("--engine.max_new_tokens with a larger limit", "--algo.mask_truncated false"),
    )


def ended_by_gradient(steps: Steps, phase: Phase) -> Diagnosis | None:
    """A gradient that is too large or not finite ended the phase."""
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
    sizes = sorted(size for size in before if size > 0)  # a step whose groups are all right or all wrong has none
    usual = sizes[len(sizes) // 2] if sizes else 0.0
    than = f", {norm / usual:.3g} times the median of the steps before" if usual else ""
    return Diagnosis(
        f"the gradient norm {norm:.3g} of step {last['step']} exceeds --gradient.stop_above {bound:g}"
        f"{than}{_told(steps, fall(steps))}",
        at_resume=(phase.lower_lr, _bound([*before, norm])),
    )


def diverged(steps: Steps, phase: Phase) -> Diagnosis | None:
    """The success rate fell for good."""
    worse = fall(steps)
    if worse is None:
        return None
    apart = worse.before.get("policy/engine_kl_nats", 0.0)
    engine = f"; engine and trainer differed by {apart:.2g} nats per token before" if apart > _ENGINE_APART else ""
    return Diagnosis(
        f"the policy diverged{_told(steps, worse)}{engine}",
        at_resume=(phase.lower_lr,),
        in_new_run=("--engine.dtype float32", "--algo.importance_correction truncate") if engine else (),
        last_good_step=worse.last_good,
    )


def _told(steps: Steps, worse: Fall | None) -> str:
    """The numbers of a fall, as a clause; without one, how the metrics changed from the first to the last step."""
    told = changes(steps, worse.before if worse else None)
    return f": {told}" if told else ""


def _bound(norms: Sequence[float]) -> str:
    """A bound of the gradient norm that the phase would not have exceeded."""
    return f"--gradient.stop_above {float(f'{10 * max(norms):.2g}'):g}" if norms else "--gradient.stop_above null"
