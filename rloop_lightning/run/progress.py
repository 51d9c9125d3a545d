"""What a run shows of its stages while they run: progress bars and sample completions."""

from __future__ import annotations

from collections.abc import Iterable

from rloop_lightning.callbacks.completions import CompletionLog
from rloop_lightning.callbacks.progress import EvaluationProgress, PhaseProgress
from rloop_lightning.callbacks.time_left import Extra
from rloop_lightning.model.policy import Policy
from rloop_lightning.run.diagnosis import phase_of
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.state import LoopState, Stage


def phase_progress(title: str, stage: Stage, state: LoopState, folder: RunFolder, parts: Parts) -> PhaseProgress:
    """The progress bar of a phase. It starts with the last pass@1 on the first set evaluated inside phases."""
    name = next(iter(parts.sets_inside), "")
    known = [result[key] for result in state.results.values() if (key := f"eval/{name}/pass@1") in result]
    extras = _extras(folder, parts) if stage.phase == "explore" else ()
    return PhaseProgress(title, parts.engine, known[-1] if known else None, extras)


def evaluation_progress(title: str, parts: Parts) -> EvaluationProgress:
    """The progress bar of an evaluation between phases."""
    sizes = {name: _size(parts, [name]) for name in parts.sets_between}
    return EvaluationProgress(title, parts.engine, sizes, parts.evaluation.samples)


def completion_log(title: str, stage: Stage, parts: Parts, policy: Policy) -> CompletionLog:
    """The sample completions of an exploration."""
    every = parts.loop.show_completions
    return CompletionLog(policy, phase_of(stage, parts), title, every, checks_first_step=stage.round == 0)


def _extras(folder: RunFolder, parts: Parts) -> tuple[Extra, ...]:
    """What an exploration does every few steps. The last evaluation between phases tells how long one inside takes."""
    rows = read_metrics(folder.metrics)
    measured = [row["time/evaluate_s"] for row in rows if row["phase"] == "evaluate" and "time/evaluate_s" in row]
    every = parts.evaluation.every_n_steps if parts.sets_inside else 0
    inside, between = _size(parts, parts.sets_inside), _size(parts, parts.sets_between)
    seconds = measured[-1] * inside / between if measured and between else None
    return (
        Extra("evaluation", "time/evaluate_s", every, after_last_step=False, seconds=seconds),
        Extra("extra capture", "time/capture_s", parts.capture.every_n_steps, after_last_step=True),
    )


def _size(parts: Parts, sets: Iterable[str]) -> int:
    """The number of problems that an evaluation of these sets samples."""
    return sum(parts.evaluation.problems_of(len(parts.evaluation_sets[name])) for name in sets)
