"""The state to resume a run from: the newest one, or an earlier one if files that it needs are damaged.

A stage reads earlier files: policies, the pool, its own checkpoints. Before a run resumes, their checksums are
verified. A damaged checkpoint is deleted, so that the previous one is used. A checkpoint after a damaged shard is
deleted as well, because the shard's rollouts must be generated again. If a file of a complete stage is damaged, that
stage is repeated. Repeated work gives the same bits.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rloop_lightning.callbacks.checkpoint import checkpoint_step
from rloop_lightning.errors import DamagedError, StateError
from rloop_lightning.evaluation.record import drop_inside_records
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.state import LoopState, Stage
from rloop_lightning.system.checksums import damaged_files

_log = logging.getLogger(__name__)


def last_good_state(folder: RunFolder, stages: Sequence[Stage]) -> LoopState | None:
    """The state to resume from; None if the run has none yet. Deletes damaged files and everything that follows them.

    Raises:
        StateError: all states to resume from are damaged.
    """
    state = _newest_state(folder)
    while state is not None and state.stages_done < len(stages) and not state.stopped:
        stage = stages[state.stages_done]
        maker = _maker_of_damaged_input(folder, stage)
        if maker is None:
            _drop_bad_checkpoints(folder, stage)
            _forget_later(folder, stages[state.stages_done + 1 :])
            break
        _log.warning(f"round {maker.round + 1} {maker.phase} is repeated")
        state = _state_before(folder, maker)
    return state


def restart(folder: RunFolder, stages: Sequence[Stage], stage: Stage) -> None:
    """Take the run back to the beginning of a phase, and forget what followed.

    Raises:
        StateError: the state at that time is damaged.
    """
    state = _state_before(folder, stage)
    # The phase has not begun then, so it takes the number of rollout steps that the settings give now.
    folder.save_state(replace(state, explore_steps=state.explore_steps[: stage.round]))
    _forget_later(folder, stages[stages.index(stage) :])


def check_policy(folder: Path) -> None:
    """Verify the checksums of a policy's files.

    Raises:
        DamagedError: names the first damaged file.
    """
    for name, what in damaged_files(folder).items():
        raise DamagedError(f"{folder / name} {what}")


def check_pool(folder: RunFolder, stage: Stage) -> None:
    """Verify the checksums of a round's shards.

    Raises:
        DamagedError: names the first damaged shard.
    """
    pool = folder.pool(stage)
    for name, what in pool.damaged().items():
        raise DamagedError(f"{pool.folder / name} {what}")


def checkpoint_damage(path: Path) -> str:
    """The damage of a checkpoint, found by the checksums in its zip format; empty if it is intact."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        return f"is not a complete checkpoint ({error})"
    return f"is damaged (the checksum of its part {bad} differs)" if bad else ""


def _newest_state(folder: RunFolder) -> LoopState | None:
    """The current state, or the previous one if that is damaged."""
    damage = []
    for path in folder.states:
        try:
            state = LoopState.load(path)
        except DamagedError as error:
            damage.append(str(error))
            continue
        for line in damage:
            _log.warning(f"{line}; the run resumes from {path.name}")
        return state
    if damage:
        raise StateError(
            "\n".join(damage) + f"\n--resume {folder.out}: no other record of its state exists; start a new run"
        )
    return None


def _maker_of_damaged_input(folder: RunFolder, stage: Stage) -> Stage | None:
    """The complete stage that wrote a damaged input of this stage; the earliest if there are several."""
    try:
        if stage.phase == "evaluate":
            maker = Stage(stage.round, "explore" if stage.which == "explored" else "consolidate", stage.which)
            if stage.which != "base":
                check_policy(folder.policy(stage))
            return None
        if initial := folder.initial_policy(stage):
            maker = Stage(stage.round - 1, "consolidate", "consolidated")
            check_policy(initial)
        if stage.phase == "consolidate":
            maker = Stage(stage.round, "explore", "explored")
            check_pool(folder, stage)
    except DamagedError as error:
        _log.warning(str(error))
        return maker
    return None


def _state_before(folder: RunFolder, stage: Stage) -> LoopState:
    try:
        return LoopState.load(folder.state_before(stage))
    except DamagedError as error:
        raise StateError(
            f"{error}\n--resume {folder.out}: no other record of that state exists; start a new run"
        ) from error


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
    """Delete the checkpoints, records and plots of stages that will be repeated.

    They overwrite their other files. Their rows leave metrics.csv when it is compared with the records (mending.py).
    """
    for stage in later:
        folder.record(stage).unlink(missing_ok=True)
        for path in folder.checkpoints(stage):
            path.unlink()
        if stage.phase == "explore":
            drop_inside_records(folder.evaluations(stage), after=0)
            folder.pool_plot(stage).unlink(missing_ok=True)
        elif stage.phase == "evaluate":
            folder.evaluation(stage).unlink(missing_ok=True)
