"""The failure signatures of RL with verifiable rewards that RLoop describes (arXiv 2511.04285), looked for in a run.

Each is a rule: it says what it saw in the run's own numbers, and what to do if that is a failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rloop_lightning.callbacks.trends import surge
from rloop_lightning.evaluation.record import read_record
from rloop_lightning.run.report.policies import measured_difference
from rloop_lightning.run.report.stored import EvaluatedStage, ReportedRun
from rloop_lightning.run.report.tables import signed
from rloop_lightning.system.terminal import one_line

_TRUNCATED = 0.1
"""Share of truncated rollouts over the last steps that is worth a warning."""
_ENGINE_KL = 1e-2
"""Mean KL divergence between engine and trainer, nats per token, far above rounding in bfloat16."""
_LAST_SHARE = 0.1
"""Share of a round's rollout steps that counts as its last steps."""


@dataclass(frozen=True)
class Sign:
    """What a rule found.

    Args:
        name: the failure.
        found: whether the run shows it; None if the run can't tell.
        seen: the numbers.
        advice: what to do; empty if it was not found.
    """

    name: str
    found: bool | None
    seen: str
    advice: str = ""


def failure_signs(run: ReportedRun) -> list[Sign]:
    """What every rule finds."""
    return [rule(run) for rule in RULES]


def gradient_explosion(run: ReportedRun) -> Sign:
    """The gradient norm gets far above its median, or updates were skipped because of it."""
    name = "Gradient explosion"
    skipped, surges, largest = 0.0, [], 0.0
    for number in run.explorations:
        rows = [row for row in run.rows if (row["round"], row["phase"]) == (number, "explore")]
        norms = [row["grad/norm_preclip_max"] for row in rows if "grad/norm_preclip_max" in row]
        skipped += sum(row.get("grad/skipped_updates", 0) for row in rows)
        largest = max([largest, *filter(math.isfinite, norms)])
        found = surge([{key: value for key, value in row.items() if key != "train/loss"} for row in rows])
        if found is not None:
            surges.append(f"round {number + 1} after step {found.last_good}")
    if not largest and not skipped:
        return Sign(name, None, "no gradient norm was measured")
    seen = f"largest norm before clipping {largest:.3g}"
    seen += f"\nabove ten times its median in {', '.join(surges)}" if surges else "\nnever above ten times its median"
    seen += f"\n{skipped:,.0f} updates were skipped" if skipped else ""
    advice = (
        "Lower --algo.lr, or end the exploration where the norm surges: --gradient.stop_above N. Shorter explorations "
        "(--loop.explore_steps) with a consolidation in between restart from an intact policy."
    )
    return _sign(name, bool(surges or skipped), seen, advice)


def pass_at_k_falls(run: ReportedRun) -> Sign:
    """pass@1 rises while pass@k falls over an exploration, both beyond chance."""
    name = "Accuracy rises while pass@k falls"
    pairs = [(run.policy(_initial(number)), run.policy(f"round {number + 1} explored")) for number in run.explorations]
    seen, found = [], False
    for before, after in ((one, other) for one, other in pairs if one and other):
        for set_name in run.sets:
            ks = run.ks(set_name)
            if ks[0] != 1 or len(ks) < 2:
                continue
            try:
                first = measured_difference(after, before, set_name, 1)
                last = measured_difference(after, before, set_name, ks[-1])
            except ValueError:
                continue
            if first.verdict == "better" and last.verdict == "worse":
                found = True
                seen.append(
                    f"{one_line(set_name)}, {before.name} to {after.name}: pass@1 {signed(first.interval)}, "
                    f"pass@{ks[-1]} {signed(last.interval)}"
                )
            elif set_name == run.sets[0] and not found:
                seen.append(
                    f"{one_line(set_name)}, {before.name} to {after.name}: pass@1 {first.interval.estimate:+.3f}, "
                    f"pass@{ks[-1]} {last.interval.estimate:+.3f}"
                )
    if not seen:
        return Sign(name, None, "pass@1 and a larger k were not measured before and after an exploration")
    advice = (
        "The policy concentrates on what it already solves. Explore for fewer steps (--loop.explore_steps), "
        "consolidate (--consolidate rft), raise --algo.clip_eps_high or --algo.entropy_coef, or hand over by "
        "--loop.select pass@k."
    )
    return _sign(name, found, "\n".join(one for one in seen if not found or "[" in one), advice)


def falls_between_rounds(run: ReportedRun) -> Sign:
    """pass@1 of the policies that begin rounds falls from one to the next, beyond chance."""
    name = "Validation falls from round to round"
    kind = "consolidated" if run.consolidates else "explored"
    policies = [one for number in run.explorations if (one := run.policy(f"round {number + 1} {kind}"))]
    set_name = _judging_set(run, policies)
    if len(policies) < 2 or not set_name:
        return Sign(name, None, "fewer than two rounds were evaluated")
    seen, falls = [], 0
    for before, after in pairwise(policies):
        try:
            difference = measured_difference(after, before, set_name, 1)
        except ValueError:
            continue
        falls += difference.verdict == "worse"
        seen.append(f"{one_line(set_name)}, {before.name} to {after.name}: pass@1 {signed(difference.interval)}")
    if not seen:
        return Sign(name, None, "the records of the rounds can't be compared")
    less = (
        "lower --consolidate.lr or --consolidate.epochs, or enlarge the expert set (rloop-data refilter shows how)"
        if run.has_expert_sets
        else "let it move the policy less (--consolidate.alpha, or --consolidate.lr and --consolidate.steps)"
    )
    best = "--loop.select pass@1 hands over the best policy on validation"
    advice = f"Consolidation does more harm than good: {less}. {best}."
    return _sign(name, falls > 0, "\n".join(seen), advice)


def truncated_share(run: ReportedRun) -> Sign:
    """Many rollouts reach the length limit in the last steps of a round."""
    name = "Truncated rollouts"
    shares = {number: _last_mean(run, number, "rollout/truncated_rate") for number in run.explorations}
    known = {number: share for number, share in shares.items() if share is not None}
    if not known:
        return Sign(name, None, "no rollout step was recorded")
    seen = ", ".join(f"round {number + 1}: {share:.1%}" for number, share in known.items())
    advice = (
        "Raise --engine.max_new_tokens if memory allows. Otherwise penalise long completions "
        "(--algo.overlong_buffer_tokens N) or leave truncated ones out of the loss (--algo.mask_truncated true)."
    )
    return _sign(name, max(known.values()) > _TRUNCATED, f"share in the last steps of {seen}", advice)


def engine_gap(run: ReportedRun) -> Sign:
    """The rollout engine and the trainer disagree on the probability of the sampled tokens."""
    name = "Gap between rollout engine and trainer"
    rows = [row for row in run.rows if row["phase"] == "explore" and "policy/engine_kl_nats" in row]
    if not rows:
        return Sign(name, None, "it was not measured")
    kl = max(abs(row["policy/engine_kl_nats"]) for row in rows)
    gap = max(row.get("policy/engine_gap_nats_max", 0.0) for row in rows)
    seen = f"KL divergence at most {kl:.2g} nats per token\nlargest gap of a token {gap:.2g} nats"
    advice = (
        "Give both the same precision (--engine.dtype, --policy.dtype), or correct for the gap: "
        "--algo.importance_correction truncate. With a mixture of experts, --policy.routing_replay r3."
    )
    return _sign(name, not kl <= _ENGINE_KL, seen, advice)


def small_expert_set(run: ReportedRun) -> Sign:
    """An expert set gives fewer than two optimizer steps an epoch."""
    name = "Small expert set"
    sizes = {
        policy: metrics["expert/rollouts"]
        for policy, metrics in run.state.results.items()
        if "expert/rollouts" in metrics
    }
    if not sizes:
        return Sign(name, None, "the run has no expert set" if run.consolidates else "the run does not consolidate")
    update = run.setting("consolidate", "rollouts_per_update", 32)
    least = 2 * update if isinstance(update, int) else 64
    seen = ", ".join(f"{policy.removesuffix(' consolidated')}: {size:,.0f} rollouts" for policy, size in sizes.items())
    advice = (
        f"Fewer than {least} rollouts are less than two optimizer steps an epoch. Raise --filter.max_success_rate "
        "(rloop-data refilter shows what each threshold would give), count over the run (--filter.rate_over run), or "
        "explore longer or with more --loop.rollouts_per_problem."
    )
    return _sign(name, min(sizes.values()) < least, seen, advice)


RULES: Sequence[Callable[[ReportedRun], Sign]] = (
    gradient_explosion,
    pass_at_k_falls,
    falls_between_rounds,
    truncated_share,
    engine_gap,
    small_expert_set,
)


def _sign(name: str, found: bool, seen: str, advice: str) -> Sign:
    return Sign(name, found, seen, advice if found else "")


def _initial(number: int) -> str:
    return f"round {number} consolidated" if number else "base"


def _judging_set(run: ReportedRun, policies: Sequence[EvaluatedStage]) -> str:
    """The validation set if it was measured, else the first shown set; empty if there is none."""
    try:
        measured = read_record(policies[0].record)["set"].unique().to_pylist() if policies else []
    except ValueError:
        return ""
    shown = next(iter(run.sets), "")
    return "validation" if "validation" in measured else shown


def _last_mean(run: ReportedRun, number: int, metric: str) -> float | None:
    rows = [row for row in run.rows if (row["round"], row["phase"]) == (number, "explore") and metric in row]
    last = rows[-max(1, math.ceil(_LAST_SHARE * len(rows))) :]
    return float(np.mean([row[metric] for row in last])) if last else None
