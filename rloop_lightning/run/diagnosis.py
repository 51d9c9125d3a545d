"""The diagnosis of a run's phases: for faults that end the run, and for phases that trained nothing or went wrong.

with explaining(folder, stage, parts):      # a fault leaves as a DiagnosedError, with its cause and what helps
    ...
watch = PhaseWatch(folder, stage, parts, policy)
...                                         # the phase trains
watch.note()                                # "the policy did not change: ...", or empty
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rloop_lightning.algorithms.consolidation import TrainedConsolidation
from rloop_lightning.callbacks.diagnosis import diagnose
from rloop_lightning.callbacks.findings import Diagnosis, Phase
from rloop_lightning.errors import DiagnosedError, NonFiniteError
from rloop_lightning.model.policy import Policy
from rloop_lightning.model.weight_sample import share_changed, weight_sample
from rloop_lightning.rollouts.stream import NotEnoughGroupsError
from rloop_lightning.run.edits import takes_effect_at_once
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.metrics_csv import read_metrics
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.state import Stage

_log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]


class PhaseWatch:
    """Compares a phase's policy before and after training, and reads its metrics.

    Args:
        policy: the round's initial policy.
        title: title of the phase, such as "round 1/3 explore".
    """

    def __init__(self, folder: RunFolder, stage: Stage, parts: Parts, policy: Policy, title: str) -> None:
        self.folder = folder
        self.stage = stage
        self.parts = parts
        self.policy = policy
        self.title = title
        self.before = weight_sample(policy)

    def note(self, *, ended_early: bool = False, too_few_groups: Mapping[str, float] | None = None) -> str:
        """What went wrong in the phase and what helps, which is logged too; empty if nothing did.

        Args:
            ended_early: the phase ended before its last step.
            too_few_groups: the metrics of the step that had too few groups to train on, if that ended the phase.
        """
        rows = _rows(self.folder, self.stage)
        stopped = ended_early and too_few_groups is None and bool(rows) and rows[-1].get("grad/skipped_updates", 0) > 0
        phase = replace(
            phase_of(self.stage, self.parts),
            ended_by_gradient=stopped,
            too_few_groups=too_few_groups is not None,
            share_changed=share_changed(self.before, weight_sample(self.policy)) if rows else None,
        )
        found = diagnose(_with(rows, too_few_groups), phase)
        if found is None:
            return ""
        note = f"{self.title}: {found.cause}; what may help: {' or '.join([*found.at_resume, *found.in_new_run])}"
        _log.warning(note)
        return note


@contextmanager
def explaining(folder: RunFolder, stage: Stage, parts: Parts) -> Iterator[None]:
    """Add cause and advice to a fault of the policy in the block.

    Raises:
        DiagnosedError: logits or weights are not finite, or dynamic sampling found too few groups.
    """
    try:
        yield
    except (NonFiniteError, NotEnoughGroupsError) as fault:
        metrics = fault.metrics if isinstance(fault, NotEnoughGroupsError) else None
        made_by, rows = _training(folder, stage) if metrics is None else (stage, _rows(folder, stage))
        phase = replace(
            phase_of(made_by or stage, parts),
            not_finite=isinstance(fault, NonFiniteError),
            too_few_groups=metrics is not None,
        )
        where = f"round {stage.round + 1} {stage.phase}"
        lines = [f"{where}: {fault}"]
        if found := diagnose(_with(rows, metrics), phase):
            lines += [found.cause, _how_to_go_on(found, folder, stage, made_by or stage)]
        raise DiagnosedError("\n".join(lines)) from fault


def phase_of(stage: Stage, parts: Parts) -> Phase:
    """The settings of a phase that a diagnosis needs."""
    trained = parts.consolidation if stage.phase == "consolidate" else None
    module = trained if isinstance(trained, TrainedConsolidation) else parts.algorithm
    return Phase(
        flag=module.flag,
        lr=module.lr,
        max_new_tokens=parts.engine.sampling(seed=0).max_new_tokens,
        problems_per_step=parts.problems_per_step,
        rollouts_per_problem=parts.loop.rollouts_per_problem,
        max_generation_batches=parts.algorithm.max_generation_batches,
        unsolved_below=parts.algorithm.unsolved.below,
        stop_above=parts.gradient.stop_above,
    )


def _training(folder: RunFolder, stage: Stage) -> tuple[Stage | None, Rows]:
    """The phase that trained the stage's current policy, and its metrics. None and no metrics for the base policy."""
    if stage.phase == "evaluate":
        makers = {
            "base": [],
            "explored": [replace(stage, phase="explore")],
            "consolidated": [replace(stage, phase="consolidate")],
        }[stage.which]
    else:  # before its first step, the policy is the one that the previous round made
        makers = [stage, Stage(stage.round - 1, "consolidate", "consolidated")]
    for maker in makers:
        if rows := _rows(folder, maker):
            return maker, rows
    return None, []


def _rows(folder: RunFolder, stage: Stage) -> Rows:
    rows = read_metrics(folder.metrics)
    return [row for row in rows if (row["round"], row["phase"]) == (stage.round, stage.phase)]


def _with(rows: Rows, metrics: Mapping[str, float] | None) -> Rows:
    """The rows and the metrics of the step after them, which was not trained."""
    if metrics is None:
        return rows
    return [*rows, {**metrics, "step": rows[-1]["step"] + 1 if rows else 1}]


def _how_to_go_on(found: Diagnosis, folder: RunFolder, stage: Stage, made_by: Stage) -> str:
    """Whether a resume helps, with which options, and what a new run could change.

    Args:
        stage: the stage that failed.
        made_by: the phase that trained its policy. A resume repeats it if its checkpoint has diverged already.
    """
    anew = f"start a new run with {' or '.join(found.in_new_run)}" if found.in_new_run else ""
    if not found.at_resume:
        return anew
    done = folder.steps_done(made_by)
    spoilt = found.last_good_step is not None and done > found.last_good_step
    option, *others = found.at_resume
    resume = f"rloop-fit --resume {shlex.quote(str(folder))}"
    if spoilt or made_by != stage or (done and not takes_effect_at_once(option.split()[0].removeprefix("--"))):
        phase = folder.phase(made_by).relative_to(folder.out).as_posix()
        command = f"repeat the phase from its start with: {resume} --restart_from {phase} {option}"
    else:
        start = f"step {done}" if done else "its start"
        command = f"resume from {start} with: {resume} {option}"
    alternatives = "".join(f" (or {other})" for other in others)
    return f"{command}{alternatives}" + (f"; or {anew}" if anew else "")
