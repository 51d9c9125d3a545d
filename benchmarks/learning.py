"""Checks that every algorithm learns: test pass@1 on countdown before and after training, by the command line.

All runs use the packaged preset's sizes, and one learning rate, without consolidation. Each algorithm's own settings
are the preset's, or those of its paper.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.studies import Outcome, run_all
from rloop_lightning.algorithms import ALGORITHMS

COMMON = ["--config", "countdown", "--consolidate", "none", "--loop.rounds", "1"]
COMMON += ["--algo.lr", "2e-4", "--eval.every_n_steps", "0", "--eval.sets", "[test]"]
TOY = ["--loop.problems_per_step", "4", "--eval.samples", "2", "--eval.k", "[1,2]", "--eval.max_problems", "4"]


def run(options: Options) -> Result:
    common = [
        *COMMON,
        "--loop.explore_steps",
        str(options.study_steps),
        *(TOY if options.toy else []),
    ]
    variants = {name: ["--algo", name] for name in ALGORITHMS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        outcomes = run_all(variants, common, seeds=options.seeds, folder=folder / "learning")
    rows = [[name, *_cells(runs)] for name, runs in outcomes.items()]
    note = (
        f"{options.study_steps} rollout steps of 32 problems x 8 rollouts; mean over "
        f"{options.seeds} seeds (standard deviation). *Standard error* is that of one run's pass@1 over its problems, "
        "the largest that was seen; *learns* says whether every seed's gain is larger."
    )
    columns = ["algorithm", "pass@1 before", "after", "gain", "standard error", "learns", "pass@32 before", "after"]
    raw = {name: [vars(outcome) | {"metrics": {}} for outcome in runs] for name, runs in outcomes.items()}
    return Result([Table("Every algorithm on countdown, set `test`", columns, rows, [note])], raw)


def _cells(runs: Sequence[Outcome]) -> list[str]:
    stderr = max(outcome.stderr for outcome in runs)
    return [
        spread_text([outcome.before for outcome in runs]),
        spread_text([outcome.after for outcome in runs]),
        spread_text([outcome.gain for outcome in runs]),
        f"{stderr:.3f}",
        "yes" if all(outcome.gain > outcome.stderr for outcome in runs) else "no",
        spread_text([outcome.pass_at_most[0] for outcome in runs]),
        spread_text([outcome.pass_at_most[1] for outcome in runs]),
    ]


def spread_text(values: Sequence[float]) -> str:
    """The mean and, for several values, the standard deviation."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ({statistics.stdev(values):.3f})"
