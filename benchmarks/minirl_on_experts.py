"""Ablates MiniRL on a mixture of experts: its parts, the updates per rollout step, and routing replay.

The policy is a small Qwen3-MoE model, made by `rloop_lightning.data.countdown_policy --experts 8`. The engine computes
in bfloat16, so that its probabilities and routing differ from the trainer's, as those of a separate engine do.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning import COMMON, TOY, spread_text
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.studies import Outcome, run_all
from rloop_lightning.data import countdown_policy

_PARTS = {
    "MiniRL": [],
    "no importance weight": ["--algo.importance_weight", "false"],
    "no clip": ["--algo.clip", "false"],
    "length normalised": ["--algo.length_normalised", "true"],
}
# With one update per rollout step, r2 replays nothing: the policy is still the one that generated.
_REPLAYS = {1: ("none", "r3"), 4: ("none", "r2", "r3")}
_LR = "4e-4"  # high enough that the parts matter within few rollout steps
_SIZES = ["--algo.lr", _LR, "--loop.problems_per_step", "16", "--eval.samples", "16", "--eval.k", "[1,16]"]


def run(options: Options) -> Result:
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)) / "minirl_on_experts"
        model = folder / "policy"
        if not (model / "README.md").is_file():
            steps = "2" if options.toy else "1500"
            countdown_policy.main(["--out", str(model), "--experts", "8", "--steps", steps])
        common = [*COMMON, "--policy.model", str(model), "--engine.dtype", "bfloat16", "--algo", "minirl"]
        common += [*_SIZES, "--loop.explore_steps", str(options.study_steps), *(TOY if options.toy else [])]
        variants = {
            f"{part}, N = {updates}, {replay}": [
                *flags,
                *["--algo.updates_per_step", str(updates), "--policy.routing_replay", replay],
            ]
            for part, flags in _PARTS.items()
            for updates, replays in _REPLAYS.items()
            for replay in replays
        }
        outcomes = run_all(variants, common, seeds=options.seeds, folder=folder)
    rows = [[name, *_cells(runs)] for name, runs in outcomes.items()]
    columns = ["", "pass@1 before", "after", "largest gradient norm", "entropy at the end, nats", "clipped"]
    columns += ["rerouted since", "rerouted by the engine"]
    note = (
        f"{options.study_steps} rollout steps of 16 problems x 8 rollouts, N optimizer steps each, learning rate "
        f"{_LR}; mean over {options.seeds} seeds (standard deviation). *clipped*: share of tokens whose gradient the "
        "clip mask drops. *rerouted since*: share of routings in which the current policy would choose other experts "
        "than the old one, *by the engine*: in which the old policy would have chosen others than the engine did; "
        "empty where it was not recorded."
    )
    raw = {name: [vars(outcome) | {"metrics": {}} for outcome in runs] for name, runs in outcomes.items()}
    return Result([Table("MiniRL on a mixture of experts, set `test`", columns, rows, [note])], raw)


def _cells(runs: Sequence[Outcome]) -> list[str]:
    return [
        spread_text([run.before for run in runs]),
        spread_text([run.after for run in runs]),
        spread_text([max(run.metrics["grad/norm_preclip_max"]) for run in runs]),
        spread_text([run.metrics["policy/entropy_nats"][-1] for run in runs]),
        _mean_of("policy/clip_fraction", runs),
        _mean_of("routing/old_current_mismatch", runs),
        _mean_of("routing/engine_old_mismatch", runs),
    ]


def _mean_of(metric: str, runs: Sequence[Outcome]) -> str:
    values = [value for run in runs for value in run.metrics.get(metric, ())]
    return f"{statistics.mean(values):.2%}" if values else ""
