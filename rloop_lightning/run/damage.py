"""What is damaged in a run folder: files that a stage reads, and those that only readers of finished phases need.

Policies, rollouts, evaluation records and expert sets have checksums (system/checksums.py). A state file has one
inside, and a checkpoint has those of its zip format.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rloop_lightning.errors import DamagedError
from rloop_lightning.evaluation.record import inside_record, inside_records
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.handover import select_stage
from rloop_lightning.run.parts import Parts
from rloop_lightning.run.state import TRAINS, LoopState, Stage
from rloop_lightning.system.checksums import damaged_files

_NAMED = 3
"""Damaged files of a folder that a warning names."""


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


def damaged_input(
    folder: RunFolder, stages: Sequence[Stage], parts: Parts, state: LoopState
) -> tuple[Stage, DamagedError] | None:
    """The damage of a file that the next stage or the hand-over reads, with the stage that wrote the file.

    If there are several, it is that of the earliest stage. None if all files are intact.

    Raises:
        StateError: the policy to hand over was deleted.
    """
    if state.stages_done < len(stages) and not state.stopped:
        read = makers(stages[state.stages_done], parts)
    else:
        selected = select_stage(folder, parts, stages[: state.stages_done], state)
        intact = state.selected == selected.name and not damaged_files(folder.final)
        read = [] if intact or selected.which == "base" else [_maker(selected)]
    for maker, reads_pool in read:
        try:
            check_pool(folder, maker) if reads_pool else check_policy(folder.policy(maker))
        except DamagedError as error:
            return maker, error
    return None


def makers(stage: Stage, parts: Parts) -> list[tuple[Stage, bool]]:
    """The stages whose policy or pool a stage reads, in order, and whether it is the pool."""
    if stage.phase == "evaluate":
        return [] if stage.which == "base" else [_maker(stage)]
    consolidates = stage.phase == "consolidate"
    algorithm, consolidation = parts.algorithm, parts.consolidation
    explores_by_earlier = algorithm.trains_on_stored or algorithm.unsolved.over == "run"
    reads_earlier = parts.filter.rate_over == "run" if consolidates else explores_by_earlier
    pools = range(0 if reads_earlier else stage.round, stage.round + consolidates)
    if consolidates and not parts.filters:
        pools = range(0)
    policies = [Stage(stage.round - 1, "consolidate", "consolidated")] if stage.round else []
    if consolidates and consolidation is not None and consolidation.reads_explored:
        policies.append(Stage(stage.round, "explore", "explored"))
    found = [
        *((Stage(number, "explore", "explored"), True) for number in pools),
        *((maker, False) for maker in policies),
    ]
    return sorted(found, key=lambda maker: (maker[0].round, TRAINS.index(maker[0].phase)))


def _maker(evaluation: Stage) -> tuple[Stage, bool]:
    """The stage that made the policy that an evaluation measures."""
    phase = TRAINS[0] if evaluation.which == "explored" else TRAINS[1]
    return Stage(evaluation.round, phase, evaluation.which), False


def damaged_records(folder: RunFolder, stages: Sequence[Stage], parts: Parts, state: LoopState) -> list[Stage]:
    """Evaluations whose records are damaged, and that later evaluations are compared with; their policies exist.

    Args: as for `needless_damage`.
    """
    if not parts.sets_between or all(stage.phase != "evaluate" for stage in stages[state.stages_done :]):
        return []
    evaluations = (stage for stage in stages[: state.stages_done] if stage.phase == "evaluate")
    damaged = (stage for stage in evaluations if _record_damage(folder, stage, state))
    return [stage for stage in damaged if stage.which == "base" or not damaged_files(folder.policy(_maker(stage)[0]))]


def _record_damage(folder: RunFolder, stage: Stage, state: LoopState) -> dict[str, str]:
    """The damage of an evaluation's record. A run of version 0 has no checksums of them."""
    return damaged_files(folder.evaluations(stage), [folder.evaluation(stage).name]) if state.began else {}


def needless_damage(folder: RunFolder, stages: Sequence[Stage], parts: Parts, state: LoopState) -> Iterator[str]:
    """Damaged files that the rest of the run does not read, one warning per folder.

    Args:
        folder: the run folder.
        stages: the plan of the run.
        parts: the parts of the run.
        state: the state that the run resumes from.
    """
    done, later = stages[: state.stages_done], stages[state.stages_done :]
    if later and later[0].phase == "explore" and state.began:
        yield from _inside_damage(folder, later[0], upto=folder.steps_done(later[0]))
    for stage in done:
        if stage.phase == "evaluate":
            if stage not in damaged_records(folder, stages, parts, state):
                yield from _warnings(folder.evaluations(stage), _record_damage(folder, stage, state), "")
            continue
        again = f"; --restart_from {folder.phase(stage).relative_to(folder.out)} makes it again, and all that follows"
        policy = folder.policy(stage)
        if folder.holds_policy(policy) or parts.loop.keep_policies == "all":
            yield from _warnings(policy, damaged_files(policy), again)
        if stage.phase == "explore":
            pool = folder.pool(stage)
            yield from _warnings(pool.folder, pool.damaged(), again)
            if state.began:
                yield from _inside_damage(folder, stage)
        elif state.began and parts.filters:
            expert = folder.expert_set(stage)
            yield from _warnings(expert.parent, damaged_files(expert.parent, [expert.name]), again)
        try:
            LoopState.load(folder.state_before(stage))
        except DamagedError as error:
            yield f"{error}; the rest of the run does not need it, but --restart_from can't go back to it"


def _inside_damage(folder: RunFolder, stage: Stage, upto: int | None = None) -> Iterator[str]:
    """Damaged records of evaluations inside an exploration, those of later steps than `upto` left out."""
    records = folder.evaluations(stage)
    last = "" if upto is None else inside_record(records, upto).name
    inside = [path.name for path in inside_records(records) if not last or path.name <= last]
    again = f"; --restart_from {folder.phase(stage).relative_to(folder.out)} makes it again, and all that follows"
    yield from _warnings(records, damaged_files(records, inside), again)


def _warnings(folder: Path, damage: Mapping[str, str], advice: str) -> Iterator[str]:
    if damage:
        named = ", ".join(f"{folder / name} {what}" for name, what in [*damage.items()][:_NAMED])
        more = f" and {len(damage) - _NAMED:,} more files are damaged" if len(damage) > _NAMED else ""
        yield f"{named}{more}; the rest of the run does not need it{advice}"
