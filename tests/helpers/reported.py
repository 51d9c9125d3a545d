"""Runs for the tests of pages: folders that hold what a run stores, made without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rloop_lightning.evaluation.record import RECORD_SCHEMA, EvaluatedPolicy, write_record
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.metrics_csv import result_step, write_table
from rloop_lightning.run.state import Budget, LoopState, Stage, plan
from rloop_lightning.types import Group, Problem, Rollout

SETTINGS: Mapping[str, Any] = {
    "seed_everything": 0,
    "algo": {"name": "dapo", "lr": 0.0002},
    "consolidate": {"name": "rft", "rollouts_per_update": 4},
    "policy": {"model": "countdown"},
    "data": {"name": "countdown"},
    "engine": {"max_new_tokens": 64},
    "loop": {"rounds": 2, "explore_steps": 20, "select": "last"},
    "filter": {"max_success_rate": 0.1},
}
SAMPLES = 8


def rollout(problem: str, *, right: bool, text: str = "", length: int = 5, step: int = 0) -> Rollout:
    """A rollout whose tokens depend on its step."""
    return Rollout(
        problem_id=problem,
        prompt_ids=np.array([3, 4]),
        completion_ids=np.arange(length) + step,
        sampling_logprobs=np.full(length, -0.5, dtype=np.float32),
        text=text or f"{problem} at step {step}: {'yes' if right else 'no'}",
        finish_reason="stop",
        reward=float(right),
        success=right,
    )


def group(rollouts: Sequence[Rollout]) -> Group:
    return Group(Problem(rollouts[0].problem_id, "prompt", "gold"), list(rollouts))


def write_pool(out: Path, round: int, step: int, rollouts: Sequence[Rollout]) -> None:
    """A shard of a round's pool, for a rollout step from 1."""
    problems = dict.fromkeys(one.problem_id for one in rollouts)
    groups = [group([one for one in rollouts if one.problem_id == name]) for name in problems]
    pool = RolloutPool(out / f"round-{round}" / "pool")
    pool.write(f"step-{step:06d}", groups, round=round, rollout_step=step - 1, run_id="r")


def write_evaluation(out: Path, stage: Stage, successes: Sequence[int], *, names: Sequence[str] = ("test",)) -> None:
    """The record of a policy with these successes among `SAMPLES` rollouts of each problem, on every set."""
    rows = []
    for name in names:
        for place, count in enumerate(successes):
            right = [index < count for index in range(SAMPLES)]
            rows.append(
                {
                    **{"set": name, "problem_id": f"q{place}", "samples": SAMPLES, "successes": count, "truncated": 0},
                    **{"length_mean": 5.0, "lengths": [5] * SAMPLES, "right": right, "temperature": 1.0, "top_k": 0},
                    **{"top_p": 1.0, "max_new_tokens": 64, "seed": 0},
                }
            )
    schema = pa.schema([field for field in RECORD_SCHEMA if field.name in rows[0]])
    policy = EvaluatedPolicy(stage.name, stage.round, stage.phase, 0)
    write_record(RunFolder(out).evaluation(stage), policy, [pa.Table.from_pylist(rows, schema=schema)])


def write_run(
    out: Path,
    *,
    successes: Mapping[str, Sequence[int]],
    rows: Sequence[Mapping[str, Any]] = (),
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    names: Sequence[str] = ("test",),
    **settings: Mapping[str, Any] | int,
) -> Path:
    """A complete run.

    Args:
        out: its folder.
        successes: of each evaluated policy by name, successes of each problem.
        rows: of metrics.csv, for rollout steps.
        metrics: further results of policies.
        names: the evaluated sets.
        settings: changes, by group.
    """
    given = {
        name: {**SETTINGS.get(name, {}), **one} if isinstance(one, Mapping) else one for name, one in settings.items()
    }
    merged = {**SETTINGS, **given}
    consolidates = merged["consolidate"]["name"] != "none"
    stages = plan(merged["loop"]["rounds"], consolidates=consolidates)
    evaluated = [stage for stage in stages if stage.phase == "evaluate" and stage.name in successes]
    results: dict[str, dict[str, float]] = {}
    for stage in evaluated:
        write_evaluation(out, stage, successes[stage.name], names=names)
        counts = np.array(successes[stage.name])
        of_sets = {f"eval/{name}/pass@1": float(counts.mean() / SAMPLES) for name in names}
        of_sets |= {f"eval/{name}/pass@8": float((counts > 0).mean()) for name in names}
        results[stage.name] = {**of_sets, **(metrics or {}).get(stage.name, {})}
    state = LoopState(
        "r",
        stages_done=len(stages),
        phase="done",
        selected=list(results)[-1],
        results=results,
        settings=merged,
        budget=Budget(rollout_steps=40, optimizer_steps=80, rollouts=640, tokens=3200, seconds=100.0),
        versions={"Python": "3.11.0"},
    )
    state.save(RunFolder(out).state)
    if rows:
        keys = ({"round": one.round, "phase": "evaluate", "step": result_step(one)} for one in evaluated)
        rows = [*rows, *({**key, **results[one.name]} for key, one in zip(keys, evaluated, strict=True))]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        write_table(RunFolder(out).metrics, columns, rows)
    return out


def training_rows(**curves: Sequence[float]) -> list[dict[str, Any]]:
    """Rows of metrics.csv for two rounds with these metrics, `group__name` for `group/name`."""
    steps = len(next(iter(curves.values()))) // 2
    return [
        {
            "round": place // steps,
            "phase": "explore",
            "step": place % steps + 1,
            **{name.replace("__", "/"): curve[place] for name, curve in curves.items()},
        }
        for place in range(2 * steps)
    ]


def with_seed(out: Path, seed: int) -> Path:
    """The same run with another seed."""
    folder = RunFolder(out)
    state = LoopState.load(folder.state)
    replace(state, settings={**state.settings, "seed_everything": seed}).save(folder.state)
    return out
