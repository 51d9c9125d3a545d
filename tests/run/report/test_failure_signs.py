"""Each failure signature: found in a run that shows it, not found in one that does not, and no verdict without data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reported import training_rows, write_run

from rloop_lightning.run.report.failure_signs import failure_signs
from rloop_lightning.run.report.run_page import report_page
from rloop_lightning.run.report.stored import read_run

FALLING = {"base": [1] * 40, "round 1 explored": [8] * 15 + [0] * 25}  # pass@1 0.125 to 0.375, pass@8 1 to 0.375
RISING = {"base": [1] * 20 + [0] * 20, "round 1 explored": [4] * 30 + [0] * 10}
BY_CHANCE = {"base": [2] * 39 + [0], "round 1 explored": [3] * 38 + [0] * 2}
ROUNDS_FALL = {"base": [2] * 40, "round 1 consolidated": [4] * 40, "round 2 consolidated": [2] * 40}
ROUNDS_RISE = {"base": [2] * 40, "round 1 consolidated": [2] * 40, "round 2 consolidated": [4] * 40}
STEADY = [1.0 + 0.1 * (place % 3) for place in range(40)]
EXPLODING = [*STEADY[:30], 4.0, 40.0, 400.0, *STEADY[:7]]
MOSTLY_ZERO = [norm if place % 3 == 1 else 0.0 for place, norm in enumerate(STEADY[1:] + STEADY[:1])]

CASES: dict[str, tuple[str, bool | None, dict[str, Any], str, str]] = {
    "a surge of the norm": ("Gradient explosion", True, {"grad__norm_preclip_max": EXPLODING}, "400", "--algo.lr"),
    "a steady norm": ("Gradient explosion", False, {"grad__norm_preclip_max": STEADY}, "1.2", ""),
    "a norm that is often 0": ("Gradient explosion", False, {"grad__norm_preclip_max": MOSTLY_ZERO}, "1.2", ""),
    "a surge among zeros": (
        "Gradient explosion",
        True,
        {"grad__norm_preclip_max": [*MOSTLY_ZERO[:39], 40.0]},
        "above ten times its median in round 2 after step 19",
        "--algo.lr",
    ),
    "skipped updates": (
        "Gradient explosion",
        True,
        {"grad__norm_preclip_max": STEADY, "grad__skipped_updates": [0.0] * 39 + [2.0]},
        "2 updates were skipped",
        "--gradient.stop_above",
    ),
    "no norm": ("Gradient explosion", None, {"rollout__reward_mean": STEADY}, "no gradient norm", ""),
    "pass@k falls": ("Accuracy rises while pass@k falls", True, FALLING, "pass@8 -0.625 [", "--loop.explore_steps"),
    "both rise": ("Accuracy rises while pass@k falls", False, RISING, "pass@8 +0.250", ""),
    "pass@k falls by chance": ("Accuracy rises while pass@k falls", False, BY_CHANCE, "pass@8 -0.025", ""),
    "not explored": ("Accuracy rises while pass@k falls", None, {"base": [1, 2]}, "were not measured", ""),
    "rounds fall": ("Validation falls from round to round", True, ROUNDS_FALL, "pass@1 -0.250", "--consolidate.lr"),
    "rounds rise": ("Validation falls from round to round", False, ROUNDS_RISE, "pass@1 +0.250", ""),
    "one round": ("Validation falls from round to round", None, FALLING, "fewer than two rounds", ""),
    "truncation": (
        "Truncated rollouts",
        True,
        {"rollout__truncated_rate": [0.0] * 38 + [0.3] * 2},
        "round 2: 30.0%",
        "--engine.max_new_tokens",
    ),
    "truncation at the start": (
        "Truncated rollouts",
        False,
        {"rollout__truncated_rate": [0.3] * 10 + [0.0] * 30},
        "round 1: 0.0%",
        "",
    ),
    "an engine apart": (
        "Gap between rollout engine and trainer",
        True,
        {"policy__engine_kl_nats": [1e-4] * 39 + [0.05], "policy__engine_gap_nats_max": [0.1] * 40},
        "at most 0.05 nats",
        "--algo.importance_correction",
    ),
    "an engine that is nan": (
        "Gap between rollout engine and trainer",
        True,
        {"policy__engine_kl_nats": [float("nan")] * 40},
        "nan",
        "--engine.dtype",
    ),
    "an engine close by": (
        "Gap between rollout engine and trainer",
        False,
        {"policy__engine_kl_nats": [1e-4] * 40},
        "0.0001",
        "",
    ),
    "few experts": ("Small expert set", True, {"expert": 7.0}, "round 1: 7 rollouts", "rloop-data refilter"),
    "enough experts": ("Small expert set", False, {"expert": 8.0}, "round 1: 8 rollouts", ""),
    "no experts": ("Small expert set", None, {}, "no expert set", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signature(tmp_path: Path, case: str) -> None:
    name, found, given, seen, advice = CASES[case]
    curves = {key: value for key, value in given.items() if "__" in key}
    successes = {key: value for key, value in given.items() if isinstance(value, list) and "__" not in key}
    metrics = {"round 1 consolidated": {"expert/rollouts": given["expert"]}} if "expert" in given else {}
    if metrics:
        successes = {"base": [1, 2], "round 1 consolidated": [1, 2]}
    rows = training_rows(**(curves or {"train__loss": [0.0] * 40}))
    run = read_run(write_run(tmp_path, successes=successes or {"base": [1, 2]}, rows=rows, metrics=metrics))
    (sign,) = [one for one in failure_signs(run) if one.name == name]
    assert sign.found is found
    assert seen in sign.seen
    assert advice in sign.advice
    assert bool(sign.advice) is bool(found)
    assert (name in dict(report_page(run).warnings)) is bool(found)


def test_validation_decides_where_it_was_measured(tmp_path: Path) -> None:
    run = read_run(
        write_run(tmp_path, successes=ROUNDS_FALL, names=("test", "validation"), rows=training_rows(a=[1.0] * 4))
    )
    (sign,) = [one for one in failure_signs(run) if one.name == "Validation falls from round to round"]
    assert sign.seen.startswith("validation, round 1 consolidated to round 2 consolidated")
