"""Where a run resumes: at the newest state, or at an earlier one if files that it needs are damaged.

A stage reads earlier files: policies, the pool, its own checkpoints. Before a run resumes, their checksums are
verified (damage.py). A damaged checkpoint is deleted, so that the previous one is used. A checkpoint after a damaged
shard is deleted as well, because the shard's rollouts must be generated again. If a file of a complete stage is
damaged, that stage is repeated. Repeated work gives the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rloop_lightning.callbacks.checkpoint import checkpoint_step
from rloop_lightning.errors import DamagedError
from rloop_lightning.evaluation.record import drop_inside_records
from rloop_lightning.run.damage import checkpoint_damage, damaged_input, makers, needless_damage
from rloop_lightning.run.edits import restart_stage
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.loggers import known_loggers
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.state import TRAINS, LoopState, Stage

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run resumes.

    Args:
        state: the state to go on from; None if the run has none yet.
        warnings: damaged files, and what is repeated because of them.
    """

    state: LoopState | None
    warnings: Sequence[str] = ()


def resume_point(folder: RunFolder, stages: Sequence[Stage], parts: Parts) -> ResumePoint:
    """Find the newest state whose next stage can read its files. Changes no file.

    Raises:
        StateError: all states to resume from are damaged, or the policy to hand over was deleted.
    """
    state, warnings = folder.newest_state()
    while state is not None and (found := damaged_input(folder, stages, parts, state)):
        maker, damage = found
        warnings.append(str(damage))
        state = _state_to_repeat(folder, stages, maker, state, warnings)
    if state is not None:
        warnings += needless_damage(folder, stages, parts, state)
        if state.stages_done == len(stages) and (fault := known_loggers(folder).fault):
            warnings.append(f"{fault}; a complete run does not read it")
    return ResumePoint(state, warnings)


def clear(folder: RunFolder, stages: Sequence[Stage], state: LoopState) -> None:
    """Delete what a kill, damage or an earlier try left after the state. The run makes it again."""
    consolidates = any(stage.phase == "consolidate" for stage in stages)
    for stage in stages[: state.stages_done]:
        drop_checkpoints(folder, stage, consolidates=consolidates)
    if state.stages_done < len(stages) and not state.stopped:
        _drop_bad_checkpoints(folder, stages[state.stages_done])
        _forget_later(folder, stages[state.stages_done + 1 :])


def drop_checkpoints(folder: RunFolder, stage: Stage, *, consolidates: bool) -> None:
    """Delete the checkpoints that a complete stage makes needless, which hold optimizer states.

    Those of an exploration stay until its pool has been read. If a shard is damaged, the run resumes from them.
    Without consolidations, they stay until the explored policy is evaluated, not the base policy before it.
    """
    explored = stage.phase == "evaluate" and stage.which == "explored"
    if stage.phase == "consolidate" or (explored and not consolidates):
        for phase in TRAINS:
            for path in folder.checkpoints(replace(stage, phase=phase)):
                path.unlink()


def restart(folder: RunFolder, stages: Sequence[Stage], stage: Stage) -> None:
    """Take the run back to the beginning of a phase, and forget what followed.

    Raises:
        DamagedError: the state at that time is damaged.
    """
    state = LoopState.load(folder.state_before(stage))
    for path in folder.checkpoints(stage):  # first: after a kill, a resume would go on from them
        path.unlink()
    # An exploration that is repeated has not begun then, so it takes the rollout steps that the settings give now.
    explored = stage.round + (stage.phase == "consolidate")
    folder.save_state(replace(state, explore_steps=state.explore_steps[:explored]), restarts=True)
    _forget_later(folder, stages[stages.index(stage) :])


def deleted_input(folder: RunFolder, stages: Sequence[Stage], parts: Parts, restart_from: str) -> str:
    """Why a phase can't be repeated alone: `--loop.keep_policies last` deleted a policy that it reads; empty if not."""
    if parts.loop.keep_policies == "all":
        return ""
    for maker, reads_pool in makers(restart_stage(folder, stages, restart_from), parts):
        path = folder.policy(maker)
        if not reads_pool and not folder.holds_policy(path):
            again = folder.phase(maker).relative_to(folder.out)
            return (
                f"--restart_from {restart_from}: it reads {path}, which was deleted (--loop.keep_policies last); take "
                f"{again}, which makes it again"
            )
    return ""


def _state_to_repeat(
    folder: RunFolder, stages: Sequence[Stage], maker: Stage, state: LoopState, warnings: list[str]
) -> LoopState:
    """The state before a stage, or before an earlier one if that is damaged; at last, that of a new run.

    Args:
        folder: the run folder.
        stages: the plan of the run.
        maker: the stage to repeat.
        state: a later state.
        warnings: takes what is damaged and what is repeated.
    """
    trained = [stage for stage in stages[: stages.index(maker) + 1] if stage.phase != "evaluate"]
    for stage in reversed(trained):
        try:
            before = LoopState.load(folder.state_before(stage))
        except DamagedError as error:
            warnings.append(str(error))
            continue
        warnings.append(f"round {stage.round + 1} {stage.phase} is repeated")
        return before
    warnings.append("the run is repeated from its beginning")
    return LoopState(state.run_id, began=state.began, base=state.base, versions=state.versions)


def _drop_bad_checkpoints(folder: RunFolder, stage: Stage) -> None:
    """Delete a phase's checkpoints, newest first, until one is intact together with its shards."""
    for path in reversed(folder.checkpoints(stage)):
        damage = checkpoint_damage(path)
        if damage:
            _log.warning(f"{path} {damage}")
        elif stage.phase == "explore":
            pool = folder.pool(stage)
            bad = pool.damaged(checkpoint_step(path))
            for name, what in bad.items():
                _log.warning(f"{pool.folder / name} {what}")
            damage = ", ".join(bad)
        if not damage:
            return
        path.unlink()
        left = folder.steps_done(stage)
        _log.warning(f"round {stage.round + 1} {stage.phase} resumes from its step {left}")


def _forget_later(folder: RunFolder, later: Sequence[Stage]) -> None:
    """Delete the checkpoints, records, states and plots of stages that will be repeated.

    They overwrite their other files. Their rows leave metrics.csv when it is compared with the records (mending.py).
    """
    for stage in later:
        folder.record(stage).unlink(missing_ok=True)
        for path in folder.checkpoints(stage):
            path.unlink()
        if stage.phase == "evaluate":
            folder.evaluation(stage).unlink(missing_ok=True)
            continue
        folder.state_before(stage).unlink(missing_ok=True)
        if stage.phase == "explore":
            drop_inside_records(folder.evaluations(stage), after=0)
            folder.pool_plot(stage).unlink(missing_ok=True)
