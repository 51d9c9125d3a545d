"""A DAPO rollout step of this checkout against the same step of another one: before and after a change.

    python -m benchmarks step_vs_checkout --against ../before

Both checkouts run their own `rloop-fit` with the same flags, in processes of their own that take turns. The other
checkout needs no installation; its `benchmarks.side_rloop` must know the flags of this one's task.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Side, StepReport, alternate, seconds_text
from benchmarks.models import SIZES, save_model
from benchmarks.options import Options
from benchmarks.report import Result, Table, size_text
from benchmarks.step_vs_trl import random_task
from benchmarks.task import OURS, Task, variants

_SIZES = ("0.86M", "11.5M", "30M-32k")
_COLUMNS = ("model", "settings", "before, s", "after, s", "after / before", "generate", "update", "peak memory")


def run(options: Options) -> Result:
    rows, raw = [], {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for size in options.sizes_or(cpu=_SIZES, cuda=("0.5B",)):
            task = random_task(str(save_model(SIZES[size], work / size)), options)
            for variant in variants(OURS, options):
                turns = _turns(task, variant, options, work)
                rows.append([size, variant, *_cells(turns["before"], turns["after"])])
                raw[f"{size} {variant}"] = {side: [asdict(step) for step in steps] for side, steps in turns.items()}
    about = (
        f"{task.shared_text()}. {options.rounds} turns each; median (least to most). The columns `after / before`, "
        "`generate` and `update` are medians of the ratios of neighbouring turns. Memory: before / after."
    )
    return Result([Table("A rollout step before and after", _COLUMNS, rows, [about])], raw)


def _turns(task: Task, variant: str, options: Options, work: Path) -> dict[str, list[StepReport]]:
    assert options.against is not None  # `options.parse` asks for it
    roots = {"before": options.against, "after": ROOT}
    sides = {}
    for name, root in roots.items():
        out = Path(tempfile.mkdtemp(dir=work))
        flags = task.rloop_flags(options.device, OURS[options.device][variant], 1 + options.rounds, out / "run")
        sides[name] = Side(f"{name}, {variant}", "benchmarks.side_rloop", flags, out / "log", root=root)
    with sides["before"] as before, sides["after"] as after:
        steps = {"before": before.step, "after": after.step}
        alternate(steps, rounds=1)
        return alternate(steps, options.rounds)


def _cells(before: list[StepReport], after: list[StepReport]) -> list[str]:
    def ratio(name: str) -> str:
        ratios = [getattr(b, name) / getattr(a, name) for a, b in zip(before, after, strict=True)]
        return f"{statistics.median(ratios):.2f}"

    seconds: list[Any] = [seconds_text([step.seconds for step in side]) for side in (before, after)]
    memory = " / ".join(size_text(side[-1].peak_bytes) for side in (before, after))
    return [*seconds, ratio("seconds"), ratio("generate_s"), ratio("update_s"), memory]
