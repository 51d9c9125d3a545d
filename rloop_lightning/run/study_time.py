"""How long the cells of a study will take: by those that are complete, else by a trial of two rollout steps."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rloop_lightning.callbacks.run_estimate import duration
from rloop_lightning.errors import RunFault
from rloop_lightning.run.cells import FIT, complaint_in
from rloop_lightning.run.forecast import evaluation_rollouts, work_left
from rloop_lightning.run.metrics_csv import MetricsError, read_metrics
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.settings import settings_text
from rloop_lightning.run.state import Stage
from rloop_lightning.run.study import Arm, Cell, Study
from rloop_lightning.system.files import write_text

# A run without anything but its two rollout steps and small evaluations.
_TRIAL = (
    "--loop.rounds=1",
    "--loop.explore_steps=2",
    "--loop.select=last",
    "--loop.checkpoint_every_n_steps=0",
    "--consolidate=none",
    "--filter.control=none",
    "--eval.every_n_steps=0",
    "--eval.max_problems=2",
    "--capture.every_n_steps=0",
    "--trainer.logger=false",
)
_START_S = 10.0  # of a process, to its first rollout


@dataclass(frozen=True)
class Speed:
    """What a trial measured.

    Args:
        step_s: seconds of a rollout step.
        step_rollouts: rollouts that the step trains on.
        sampling_s: seconds of one sampled rollout.
    """

    step_s: float
    step_rollouts: int
    sampling_s: float

    def of(self, parts: Parts) -> float:
        """Seconds of a run with these parts, without its consolidations."""
        steps, rollouts = work_left(parts, Stage(0, "explore", "explored"), 0)
        rollouts += evaluation_rollouts(parts, parts.sets_between)  # of the base policy
        step_s = self.step_s * parts.problems_per_step * parts.loop.rollouts_per_problem / self.step_rollouts
        return _START_S + steps * step_s + rollouts * self.sampling_s


def measured_speed(arm: Arm, parts: Parts, threads: int | None) -> Speed:
    """Run two rollout steps of an arm on this machine.

    Raises:
        RunFault: the run failed, with its complaint.
    """
    with tempfile.TemporaryDirectory(prefix="rloop-trial-") as folder:
        settings, out, log = (Path(folder) / name for name in ("settings.yaml", "run", "log"))
        write_text(settings, settings_text(arm.settings))
        environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
        with log.open("wb") as output:
            done = subprocess.run(
                [*FIT, "--config", str(settings), "--out", str(out), *_TRIAL],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
            )
        if done.returncode:
            raise RunFault(complaint_in(log))
        try:
            last = [row for row in read_metrics(out / "metrics.csv") if row["phase"] == "explore"][-1]
            sampling_s = last["time/generate_s"] + last["time/reward_s"]
            return Speed(
                sampling_s + last["time/update_s"],
                parts.problems_per_step * parts.loop.rollouts_per_problem,
                sampling_s / last["rollout/generated_rollouts"],
            )
        except (MetricsError, KeyError, IndexError) as error:
            raise RunFault(f"the trial has no rollout step: {error}") from error


def seconds_by_arm(study: Study, speed: Speed | None, parts: Mapping[str, Parts]) -> dict[str, float]:
    """By arm, the seconds of a cell: of its complete cells, else by the speed, else of all complete cells."""
    spent: dict[str, list[float]] = {arm.name: [] for arm in study.arms}
    for cell in study.cells:
        if cell.complete and (state := cell.state()):
            spent[cell.arm.name].append(state.budget.seconds)
    everything = [seconds for values in spent.values() for seconds in values]
    found = {}
    for name, values in spent.items():
        if values:
            found[name] = sum(values) / len(values)
        elif speed is not None:
            found[name] = speed.of(parts[name])
        elif everything:
            found[name] = sum(everything) / len(everything)
    return found


def seconds_left(cell: Cell, by_arm: Mapping[str, float]) -> float:
    """Seconds that a cell still needs, as far as its complete phases tell; 0 if nothing is known."""
    if cell.complete or cell.arm.name not in by_arm:
        return 0.0
    state = cell.state()
    return max(0.0, by_arm[cell.arm.name] - (state.budget.seconds if state else 0.0))


def plan_lines(study: Study, by_arm: Mapping[str, float], basis: str, jobs: int) -> list[str]:
    """The cells with their states and times, and the time of the study.

    Args:
        by_arm: seconds of a cell, by arm.
        basis: what the times come from.
        jobs: cells at a time.
    """
    lines = [_line(study, cell, by_arm) for cell in study.cells]
    left = [cell for cell in study.cells if not cell.complete]
    count = f"{len(study.cells)} runs, {len(left)} to do"
    if not left or not by_arm:
        return [*lines, f"{count}{f'; expected time: {basis}' if left else ''}"]
    total = duration(sum(seconds_left(cell, by_arm) for cell in left) / jobs)
    return [*lines, f"{count}: about {total}, {f'{jobs} at a time' if jobs > 1 else 'one at a time'}, by {basis}"]


def _line(study: Study, cell: Cell, by_arm: Mapping[str, float]) -> str:
    state, number = cell.state(), study.cells.index(cell) + 1
    where = "to do" if state is None else f"begun, round {state.round + 1} {state.phase}"
    seconds = seconds_left(cell, by_arm)
    about = f", about {duration(seconds)}" if seconds else ""
    return f"[{number}/{len(study.cells)}] {cell}: {'complete' if cell.complete else where + about}"
