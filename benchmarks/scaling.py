"""Measures how time and memory grow: of a rollout step with its sizes, of the pool filter with the pool, and start-up.

A rollout step is measured once for each number of problems, group size, completion length and vocabulary, in its own
process, after a step that is not counted. The filter runs on generated pools (pool_of_rollouts.py), and its whole
process is measured. Start-up is the time of `rloop-fit` until `--help` ends, and until the first rollout is in the
pool's folder.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, peak_bytes, peaks_of_children, side_environment
from benchmarks.models import SIZES, Size, save_model
from benchmarks.options import Options
from benchmarks.pool_of_rollouts import PoolShape, write_pool
from benchmarks.report import Result, Table, size_text
from benchmarks.step_vs_trl import open_side, random_task
from benchmarks.task import OURS, Task, variants
from rloop_lightning.rollouts.filter import FilterConfig, build_expert_set
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.rollouts.shard_processes import processes_for

_BARS = "Bars: 10 million rollouts in less than 60 s and 1 GB; `--help` in less than 3 s."
_FILTER_COLUMNS = ["rollouts", "processes", "seconds", "peak memory", "of each other process", "pool", "expert set"]
_FIT = "import sys; from rloop_lightning.cli.commands import rloop_fit; sys.exit(rloop_fit())"


def run(options: Options) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        steps, step_raw = _steps(options, work)
        filtered, filter_raw = _filters(options, work)
        started = _start_up(options, work)
    step_columns = [
        "what grows",
        "to",
        "seconds a step",
        "µs a generated token",
        "peak memory",
        "before the first step",
    ]
    start_rows = [[what, f"{statistics.median(times):.2f}", f"{min(times):.2f}"] for what, times in started.items()]
    tables = [
        Table("A rollout step as it grows", step_columns, steps, [_base_text(options)]),
        Table("The pool filter as the pool grows", _FILTER_COLUMNS, filtered),
        Table("Start-up", ["", "median, seconds", "least"], start_rows, [_BARS]),
    ]
    return Result(tables, {"steps": step_raw, "filter": filter_raw, "start-up": started})


def grown(base: Task, size: Size, options: Options) -> Iterator[tuple[str, int, Task, Size]]:
    """Yields the growing size, its value, and the resulting task and model. All other sizes stay fixed."""
    points: dict[str, tuple[int, ...]] = {"vocabulary": (100,)}
    if not options.toy:
        points = {
            "problems": (8, 16, 32, 64),
            "group": (4, 8, 16, 32),
            "completion": (32, 64, 128, 256),
            "vocabulary": (1000, 4000, 16_000, 64_000),
        }
    for what, values in points.items():
        for value in values:
            if what == "problems":
                yield what, value, replace(base, problems_per_step=value), size
            elif what == "group":
                yield what, value, replace(base, rollouts_per_problem=value), size
            elif what == "completion":
                yield what, value, replace(base, max_new_tokens=value), size
            else:
                yield what, value, base, replace(size, vocabulary=value)


def _base(options: Options) -> tuple[Task, str]:
    """The task and model that sizes grow from. All completions reach the limit."""
    task = random_task("", options)
    task = replace(task, problems_per_step=min(16, task.problems_per_step))
    return task, options.sizes_or(cpu=("0.86M",), cuda=("0.5B",))[0]


def _base_text(options: Options) -> str:
    task, name = _base(options)
    return f"Model {name}, {variants(OURS, options)[-1]}, completions of equal length. Else {task.shared_text()}."


def _steps(options: Options, work: Path) -> tuple[list[list[str]], list[dict[str, Any]]]:
    base, name = _base(options)
    rows, raw = [], []
    for what, value, task, size in grown(base, SIZES[name], options):
        model = save_model(size, work / "model", stop_rate=0)
        task = replace(task, model=str(model))
        count = 2 if options.toy else 3
        with open_side("ours", variants(OURS, options)[-1], task, options, count, work) as side:
            report = min([side.step() for _ in range(count)][1:], key=lambda step: step.seconds)
        token = 1e6 * report.seconds / report.generated_tokens
        memory = [size_text(report.peak_bytes), size_text(report.base_bytes)]
        rows.append([what, f"{value:,}", f"{report.seconds:.3g}", f"{token:.3g}", *memory])
        raw.append({"what": what, "value": value, **asdict(report)})
    return rows, raw


def _filters(options: Options, work: Path) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """The filter on growing pools. A larger pool extends the smaller one."""
    pool = RolloutPool(work / "pool")
    rows, raw = [], []
    for rollouts in sorted(
        {max(1, options.filter_rollouts // part) for part in ((10, 1) if options.toy else (1000, 100, 10, 1))}
    ):
        write_pool(pool.folder, PoolShape(rollouts=rollouts))
        shards = pool.shards()
        disk = sum(path.stat().st_size for path in shards)
        for processes in sorted({1, processes_for(shards)}):
            arguments = [str(pool.folder), str(work / "expert.parquet"), str(processes)]
            found = json.loads(_output([sys.executable, "-m", "benchmarks.scaling", *arguments]))
            other = size_text(found["others_bytes"]) if processes > 1 else "none"
            row = [f"{found['rollouts']:,}", str(processes), f"{found['seconds']:.3g}", size_text(found["peak_bytes"])]
            rows.append([*row, other, size_text(disk), f"{found['kept']:,}"])
            raw.append(found)
    return rows, raw


def _start_up(options: Options, work: Path) -> dict[str, list[float]]:
    """Seconds of each start, by its end point."""
    times: dict[str, list[float]] = {"rloop-fit --help": [], "to the first rollout": []}
    sizes = {"problems_per_step": 1, "rollouts_per_problem": 2, "max_new_tokens": 1}
    for _ in range(options.rounds):
        started = time.time()
        _output([sys.executable, "-c", _FIT, "--help"])
        times["rloop-fit --help"].append(time.time() - started)
        task = Task("countdown", "countdown", {"train_size": 300}, **sizes)
        out = Path(tempfile.mkdtemp(dir=work)) / "run"
        flags = task.rloop_flags(options.device, OURS[options.device][variants(OURS, options)[0]], 1, out)
        started = time.time()
        _output([sys.executable, "-c", _FIT, *flags])
        (shard,) = (out / "round-0" / "pool").glob("*.parquet")
        times["to the first rollout"].append(shard.stat().st_mtime - started)
        shutil.rmtree(out)
    return times


def _output(command: list[str]) -> str:
    """The standard output of a command.

    Raises:
        RuntimeError: the command failed; the message shows its error output.
    """
    done = subprocess.run(command, cwd=ROOT, env=side_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def main() -> None:
    """Filter the pool in a folder by so many processes, and print time and memory as JSON."""
    pool, out, processes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    started = time.perf_counter()
    with peaks_of_children() as peaks:
        stats = build_expert_set(RolloutPool(pool), out, FilterConfig(), seed=0, processes=processes)
    found = {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes("cpu"), "processes": processes}
    found["others_bytes"] = max(peaks.values(), default=0)
    print(json.dumps({**found, "rollouts": stats.rollouts_seen, "kept": stats.kept}))


if __name__ == "__main__":
    main()
