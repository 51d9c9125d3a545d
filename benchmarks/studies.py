"""Runs `rloop-fit` over variants and seeds, and reads the outcomes, for the studies.

    outcomes = run_all({"dapo": ["--algo", "dapo"]}, common, seeds=3, folder=work)
    outcomes["dapo"][0].gain        # gain of test pass@1 with the first seed

Each run is a separate process on one thread. A run that is complete in the folder is not repeated.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ROOT
from rloop_lightning.run.metrics_csv import read_metrics

_LOG_TAIL_CHARACTERS = 3000


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run of one round, on the set `test`.

    Args:
        before: pass@1 of the base policy.
        after: pass@1 of the final policy.
        stderr: the larger of both standard errors over problems.
        pass_at_most: pass@k before and after, at the largest k.
        metrics: values of each training metric, step by step; steps without the metric are skipped.
        seconds: time of generation and updates.
    """

    before: float
    after: float
    stderr: float
    pass_at_most: tuple[float, float]
    metrics: Mapping[str, Sequence[float]]
    seconds: float

    @property
    def gain(self) -> float:
        return self.after - self.before


def run_all(
    variants: Mapping[str, Sequence[str]], common: Sequence[str], *, seeds: int, folder: Path
) -> dict[str, list[Outcome]]:
    """Each variant's outcomes, by seed. Seeds are the outer loop, so that an interrupted study is useful.

    Args:
        variants: flags by name of the variant.
        common: flags of all runs.
        seeds: runs per variant.
        folder: folder for run folders and logs.
    """
    outcomes: dict[str, list[Outcome]] = {name: [] for name in variants}
    for seed in range(seeds):
        for name, flags in variants.items():
            out = folder / f"{name.replace(' ', '-').replace(',', '')}-seed-{seed}"
            if not (out / "final").is_dir():
                _run([*common, *flags, "--seed_everything", str(seed), "--out", str(out)], out.with_suffix(".log"))
            outcomes[name].append(read_outcome(out))
            print(
                f"{out.name}: test pass@1 {outcomes[name][-1].before:.3f} -> {outcomes[name][-1].after:.3f}", flush=True
            )
    return outcomes


def read_outcome(out: Path) -> Outcome:
    """Read the outcome of a run folder from its metrics.csv."""
    rows = read_metrics(out / "metrics.csv")
    base, *_, last = [row for row in rows if row["phase"] == "evaluate"]
    steps = [row for row in rows if row["phase"] == "explore"]
    largest = max(
        int(name.rpartition("@")[2]) for name in base if name.startswith("eval/test/pass@") and "_" not in name
    )
    most = f"eval/test/pass@{largest}"
    names = {name for row in steps for name in row if "/" in name}
    return Outcome(
        before=base["eval/test/pass@1"],
        after=last["eval/test/pass@1"],
        stderr=max(base["eval/test/pass@1_stderr"], last["eval/test/pass@1_stderr"]),
        pass_at_most=(base[most], last[most]),
        metrics={name: [row[name] for row in steps if name in row] for name in sorted(names)},
        seconds=sum(row["time/generate_s"] + row["time/update_s"] for row in steps),
    )


def _run(flags: Sequence[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        command = [sys.executable, "-m", "rloop_lightning", *flags]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        tail = log.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
        raise RuntimeError(f"rloop-fit {' '.join(flags)} ended with exit code {done.returncode}:\n{tail}")
