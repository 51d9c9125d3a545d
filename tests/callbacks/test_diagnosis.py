"""From the metrics of a phase to a named cause and options: records by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rloop_lightning.callbacks.diagnosis import diagnose, first_step_faults
from rloop_lightning.callbacks.findings import Phase

PHASE = Phase(
    flag="--algo", lr=0.01, max_new_tokens=64, problems_per_step=8, rollouts_per_problem=8, max_generation_batches=10
)
CHANGED = 0.9


def phase(**changes: Any) -> Phase:
    return Phase(**{**PHASE.__dict__, "share_changed": CHANGED, **changes})


def row(step: int, success: float, *, norm: float = 1.0, rollouts: int = 256, **others: float) -> dict[str, Any]:
    """A trained rollout step."""
    return {
        "step": step,
        "rollout/success_rate": success,
        "rollout/reward_mean": success,
        "rollout/solved_rate": min(1.0, 4 * success),
        "rollout/all_right_rate": 0.0,
        "rollout/kept_rate": min(1.0, 4 * success),
        "rollout/generated_rollouts": float(rollouts),
        "rollout/truncated_rate": 0.0,
        "rollout/length_tokens": 30.0,
        "policy/entropy_nats": 0.3,
        "grad/norm_preclip_max": norm,
        "grad/skipped_updates": 0.0,
        "train/loss": 0.1,
        "train/lr": 0.01,
        **{name.replace("__", "/"): value for name, value in others.items()},
    }


def shortage(step: int, *, kept: float, right: float, solved: float, success: float) -> dict[str, Any]:
    """A rollout step that had too few groups, so that nothing was trained."""
    full = row(step, success, rollouts=640)
    counted = {key: value for key, value in full.items() if key.startswith(("rollout", "step"))}
    return {
        **counted,
        "rollout/kept_rate": kept,
        "rollout/all_right_rate": right,
        "rollout/solved_rate": solved,
    }


HEALTHY = [row(step, 0.2 + step / 100) for step in range(1, 8)]


def test_a_phase_without_a_fault_has_no_diagnosis() -> None:
    assert diagnose(HEALTHY, phase()) is None


def test_a_diverged_policy_is_told_with_its_numbers_and_its_last_good_step() -> None:
    rates, norms = (0.25, 0.31, 0.29, 0.1, 0.02, 0.0, 0.0), (1, 1, 1, 4, 80, 300, 20)
    rows = [row(i, rate, norm=norm) for i, (rate, norm) in enumerate(zip(rates, norms, strict=True), 1)]
    found = diagnose(rows, phase())
    assert found is not None
    assert found.cause == (
        "the policy diverged: from step 2 to step 7, the success rate fell from 0.31 to 0, the gradient norm rose from "
        "1 to 300"
    )
    assert found.last_good_step == 3
    assert found.at_resume == ("--algo.lr 1e-04",)


def test_a_small_learning_rate_is_lowered_by_a_factor_of_ten() -> None:
    rows = [row(1, 0.5), row(2, 0.5), row(3, 0.0)]
    found = diagnose(rows, phase(lr=1e-5))
    assert found is not None
    assert found.at_resume == ("--algo.lr 1e-06",)


@pytest.mark.parametrize(
    ("rates", "rollouts"),
    [
        ((0.3, 0.25, 0.2, 0.12), 256),  # worse, but not lost
        ((0.125, 0.0), 8),  # one success among eight rollouts
        ((0.0, 0.05, 0.02, 0.03), 256),
    ],
)
def test_noise_is_no_divergence(rates: tuple[float, ...], rollouts: int) -> None:
    assert diagnose([row(i, rate, rollouts=rollouts) for i, rate in enumerate(rates, 1)], phase()) is None


def test_an_engine_that_differed_from_the_trainer_is_named() -> None:
    gap = {"policy__engine_kl_nats": 0.2}
    found = diagnose([row(1, 0.4, **gap), row(2, 0.4, **gap), row(3, 0.0, **gap)], phase())
    assert found is not None
    assert found.cause.endswith("; engine and trainer differed by 0.2 nats per token before")
    assert found.at_resume == ("--algo.lr 1e-04",)  # a resume refuses another engine
    assert found.in_new_run[0] == "--engine.dtype float32"


def test_nan_after_a_divergence_is_that_divergence() -> None:
    rows = [row(1, 0.3), row(2, 0.3), row(3, 0.0, norm=500.0), row(4, 0.0)]
    found = diagnose(rows, phase(not_finite=True))
    assert found is not None
    assert found.cause.startswith("the policy diverged: from step 1 to step 4, the success rate fell from 0.3 to 0")
    assert found.last_good_step == 2


def test_nan_after_a_surge_of_the_loss_in_a_consolidation() -> None:
    losses = (0.5, 0.45, 0.4, 9.0)
    rows = [{"step": i, "train/loss": loss, "train/lr": 1.0} for i, loss in enumerate(losses, 1)]
    found = diagnose(rows, Phase(flag="--consolidate", lr=1.0, not_finite=True))
    assert found is not None
    assert found.cause == "the policy diverged: from step 3 to step 4, the loss rose from 0.4 to 9"
    assert found.at_resume == ("--consolidate.lr 1e-04",)
    assert found.last_good_step == 3


def test_nan_out_of_nothing_may_be_a_callbacks_doing() -> None:
    found = diagnose(HEALTHY, phase(not_finite=True))
    assert found is not None
    assert found.cause.startswith("the metrics up to step 7 show no divergence")
    assert "--trainer.callbacks" in found.cause
    assert found.last_good_step == 6


def test_nan_before_any_training_is_the_models() -> None:
    found = diagnose([], phase(not_finite=True))
    assert found is not None
    assert "the policy was not trained before" in found.cause
    assert found.at_resume == ()
    assert "--policy.dtype float32 --engine.dtype float32" in found.in_new_run


def test_a_saturated_policy() -> None:
    rows = [*HEALTHY, shortage(8, kept=0.05, right=0.9, solved=0.95, success=0.93)]
    found = diagnose(rows, phase(too_few_groups=True))
    assert found is not None
    assert found.cause == "saturated: of 80 problems, 90% are solved by every rollout and 5% by none"
    assert found.at_resume == ("--loop.on_too_few_groups end_phase",)


def test_hard_problems_need_more_rollouts_or_problems() -> None:
    rows = [row(1, 0.03), shortage(2, kept=0.06, right=0.0, solved=0.06, success=0.02)]
    found = diagnose(rows, phase(too_few_groups=True))
    assert found is not None
    assert found.cause == "most problems are too hard: of 80 problems, 0% are solved by every rollout and 94% by none"
    # One group in 1 / 0.06 is kept: 20 rollout steps of problems give one of kept groups, with a fifth to spare.
    assert found.at_resume[:2] == ("--algo.max_generation_batches 20", "--loop.rollouts_per_problem 16")


def test_no_success_since_the_start_is_told_with_the_number_of_rollouts() -> None:
    found = diagnose([row(1, 0.0), row(2, 0.0)], phase())
    assert found is not None
    assert found.cause.startswith("no success in 512 rollouts since the start")
    assert found.at_resume == ("--loop.rollouts_per_problem 16",)


def test_completions_that_never_end() -> None:
    (found,) = first_step_faults({**row(1, 0.0), "rollout/truncated_rate": 1.0}, phase())
    assert found.cause == "nothing ends: every completion is cut at the limit of 64 tokens (256 rollouts)"
    assert found.in_new_run[0].startswith("--engine.max_new_tokens above 64")
    (most,) = first_step_faults({**row(1, 0.1), "rollout/truncated_rate": 0.96}, phase())
    assert most.cause.startswith("nothing ends: 96.0% of the completions are cut")


def test_answers_that_can_not_be_read() -> None:
    (found,) = first_step_faults({**row(1, 0.0), "reward/unparsable": 256.0}, phase())
    assert found.cause == "the reward never pays: in none of 256 completions could an answer be read"


def test_a_reward_that_always_pays_and_a_first_step_as_it_should_be() -> None:
    (found,) = first_step_faults(row(1, 1.0), phase())
    assert found.cause.startswith("all 256 rollouts are right")
    assert first_step_faults(row(1, 0.3), phase()) == []


def test_a_policy_that_skipped_updates_left_as_it_was() -> None:
    skipped = {"step": 1, "rollout/success_rate": 0.2, "rollout/generated_rollouts": 64.0, "train/lr": 0.01}
    rows = [{**skipped, "grad/skipped_updates": 2.0, "grad/norm_preclip_max": 0.7}]
    found = diagnose(rows, phase(share_changed=0.0, stop_above=0.1))
    assert found is not None
    assert found.cause == (
        "the policy did not change: every optimizer step was skipped (2 in all; largest gradient norm 0.7)"
    )
    assert found.at_resume[0] == "--gradient.stop_above 7"


@pytest.mark.parametrize("changed", [0.0, 0.9])  # by weight decay
def test_a_policy_that_no_gradient_reached(changed: float) -> None:
    found = diagnose([row(1, 0.5, norm=0.0)], phase(share_changed=changed))
    assert found is not None
    assert "every gradient was 0, because all rollouts of each group had the same reward" in found.cause
    assert "--algo.dynamic_sampling true" in found.at_resume


def test_a_policy_whose_rollouts_were_all_out_of_the_loss() -> None:
    trained = {name: value for name, value in row(1, 0.5).items() if name != "train/loss"}
    found = diagnose([trained], phase(share_changed=0.0))
    assert found is not None
    assert "no rollout had a token in the loss" in found.cause


def test_updates_that_rounding_loses() -> None:
    found = diagnose([row(1, 0.5)], phase(share_changed=0.002, lr=1e-7))
    assert found is not None
    assert "of its weights, 0.20% are not what they were, because updates of --algo.lr 1e-07" in found.cause
    assert found.at_resume == ("--algo.lr 1e-05",)


def test_a_phase_that_the_gradient_norm_ended() -> None:
    rows = [row(1, 0.2, norm=1.0), row(2, 0.2, norm=2.0), {**row(3, 0.2, norm=400.0), "grad/skipped_updates": 1.0}]
    found = diagnose(rows, phase(ended_by_gradient=True, stop_above=100.0))
    assert found is not None
    assert found.cause.startswith(
        "the gradient norm 400 of step 3 exceeds --gradient.stop_above 100, 200 times the median of the steps before"
    )
    assert found.at_resume == ("--algo.lr 1e-04", "--gradient.stop_above 4000")


def test_a_phase_that_a_nan_loss_ended() -> None:
    rows = [row(1, 0.2), {**row(2, 0.2), "grad/skipped_updates": 1.0}]
    found = diagnose(rows, phase(ended_by_gradient=True))
    assert found is not None
    assert found.cause.startswith("a loss or gradient of step 2 is NaN or infinite")
    assert "--gradient.stop_on_nonfinite false" in found.at_resume


@pytest.mark.parametrize(("below", "advised"), [(0.0, "0.1"), (0.1, "0.5"), (0.3, "0.5"), (0.5, "")])
def test_the_advice_for_a_phase_without_unsolved_problems_is_a_larger_threshold(below: float, advised: str) -> None:
    last = {
        **shortage(2, kept=0.1, right=0.1, solved=0.5, success=0.2),
        "rollout/solved_groups": 50.0,
        "rollout/unsolved_problems": 4.0,
    }
    found = diagnose([row(1, 0.2), last], phase(too_few_groups=True, unsolved_below=below))
    assert found is not None
    assert found.cause.startswith("too little is left to train on: of 80 groups, 50 are of problems that were solved")
    given = [option for option in found.in_new_run if option.startswith("--algo.unsolved_below")]
    assert given == ([f"--algo.unsolved_below {advised}"] if advised else [])
