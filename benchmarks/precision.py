"""Compares learning in bfloat16 and float32: DAPO on countdown, with the same seeds."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning import COMMON, TOY, spread_text
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.studies import Outcome, run_all

_BFLOAT16_ENGINE = ["--engine.dtype", "bfloat16"]
_VARIANTS = {
    "float32": [],
    "engine in bfloat16": _BFLOAT16_ENGINE,
    "engine in bfloat16, corrected": [*_BFLOAT16_ENGINE, "--algo.importance_correction", "truncate"],
    "engine and update in bfloat16": [*_BFLOAT16_ENGINE, "--trainer.precision", "bf16-mixed"],
}


def run(options: Options) -> Result:
    common = [*COMMON, "--algo", "dapo", "--loop.explore_steps", str(options.study_steps)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        common += TOY if options.toy else []
        outcomes = run_all(_VARIANTS, common, seeds=options.seeds, folder=folder / "precision")
    rows = [[name, *_cells(runs)] for name, runs in outcomes.items()]
    note = (
        f"DAPO, {options.study_steps} rollout steps of 32 problems x 8 rollouts; mean over {options.seeds} seeds "
        "(standard deviation). *KL* and *gap*: between the engine's and the trainer's policy, mean over all tokens "
        "and largest difference of two logprobs."
    )
    columns = ["", "reward of the last 10 steps", "pass@1 after", "pass@32 after", "KL, nats", "gap, nats"]
    raw = {name: [vars(outcome) | {"metrics": {}} for outcome in runs] for name, runs in outcomes.items()}
    return Result([Table("bfloat16 against float32, set `test`", columns, rows, [note])], raw)


def _cells(runs: Sequence[Outcome]) -> list[str]:
    return [
        spread_text([statistics.mean(run.metrics["rollout/reward_mean"][-10:]) for run in runs]),
        spread_text([run.after for run in runs]),
        spread_text([run.pass_at_most[1] for run in runs]),
        f"{statistics.mean(statistics.mean(run.metrics['policy/engine_kl_nats']) for run in runs):.2g}",
        f"{max(max(run.metrics['policy/engine_gap_nats_max']) for run in runs):.2g}",
    ]
