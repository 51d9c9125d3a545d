"""Checks that our trainer and TRL's GRPOTrainer learn the same, which the comparison of their speed requires.

Gradient: TRL does one whole step, and its rollouts pass through our reward, advantages and loss (same_gradient.py).
Learning: both train the embedded policy on its problems, in float32, with equal settings. Their random numbers differ,
so their rewards rise alike but are not equal.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, alternate, side_environment
from benchmarks.models import SIZES, save_model
from benchmarks.options import Options
from benchmarks.report import Result, Table
from benchmarks.step_vs_trl import open_side, random_task
from benchmarks.task import OURS, TRL, Task, trl_request

_WINDOW = 10  # number of steps that a mean reward covers


def run(options: Options) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        gradient = _gradient(options, work)
        curves = _curves(options, work)
    window = min(_WINDOW, options.learn_steps)
    cosine = f"{gradient['cosine']:.6f}"
    rows = [
        ["gradient of one mini-batch: norm", f"{gradient['norm_ours']:.6g}", f"{gradient['norm_trl']:.6g}"],
        ["gradient of one mini-batch: cosine of both", cosine, cosine],
    ]
    for what, chosen in (("first", slice(None, window)), ("last", slice(-window, None))):
        means = [f"{statistics.mean(curve[chosen]):.3f}" for curve in curves.values()]
        rows.append([f"mean reward of the {what} {window} steps", *means])
    note = f"The rewards are of {options.learn_steps} rollout steps on the policy that the package carries."
    return Result([Table("Both learn the same", ["", "ours", "TRL"], rows, [note])], {**gradient, "reward": curves})


def _gradient(options: Options, work: Path) -> dict[str, float]:
    model = save_model(SIZES["toy" if options.toy else "0.86M"], work / "model")
    variant = next(iter(TRL[options.device].values()))
    request = trl_request(random_task(str(model), options), variant, options.device, 1, work / "gradient")
    command = [sys.executable, "-m", "benchmarks.same_gradient", json.dumps(request)]
    done = subprocess.run(command, cwd=ROOT, env=side_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _curves(options: Options, work: Path) -> dict[str, list[float]]:
    """The mean reward of each rollout step, by side."""
    sizes = {"problems_per_step": 2, "rollouts_per_problem": 4, "max_new_tokens": 8} if options.toy else {}
    task = Task("countdown", "countdown", {"train_size": 300}, updates_per_step=2, lr=2e-4, **sizes)
    first = {"ours": next(iter(OURS[options.device])), "TRL": next(iter(TRL[options.device]))}
    with (
        open_side("ours", first["ours"], task, options, options.learn_steps, work) as ours,
        open_side("TRL", first["TRL"], task, options, options.learn_steps, work) as trl,
    ):
        turns = alternate({"ours": ours.step, "TRL": trl.step}, options.learn_steps)
    return {which: [report.reward for report in reports] for which, reports in turns.items()}
