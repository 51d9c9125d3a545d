"""How new a copy of a run is and how far it has come, on this machine and in its store."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rloop_lightning.errors import DamagedError, StateError
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.state import LoopState
from rloop_lightning.system.store import Store

_CHECKPOINT = re.compile(r"round-(\d+)/(explore|consolidate)/checkpoints/step-(\d{6,})\.ckpt")


@dataclass(frozen=True, order=True)
class Progress:
    """The progress of a run; a greater one is newer, or as new and further.

    A newer copy may have less: its run was restarted from an earlier phase, or repeats damaged ones.

    Args:
        saves: how often the run's state was saved.
        stages_done: complete stages.
        steps: training steps of the next stage at its newest checkpoint.
        handed_over: whether the final policy is saved.
    """

    saves: int
    stages_done: int
    steps: int
    handed_over: bool

    @classmethod
    def of(cls, state: LoopState, files: Iterable[str]) -> Progress:
        """From the state and the names of the files."""
        found = (match.groups() for match in map(_CHECKPOINT.fullmatch, files) if match)
        next_stage = (str(state.round), state.phase)
        steps = [int(step) for number, phase, step in found if (number, phase) == next_stage]
        return cls(state.saves, state.stages_done, max(steps, default=0), bool(state.selected))

    def compared(self, other: Progress) -> str:
        """In a word, how this greater progress compares with another."""
        return "further" if replace(self, saves=0) > replace(other, saves=0) else "newer"

    def __str__(self) -> str:
        steps = f" and {self.steps} training steps" if self.steps else ""
        phases = "phase" if self.stages_done == 1 else "phases"
        return f"{self.stages_done} {phases}{steps}{', handed over' if self.handed_over else ''}"


def local_state(folder: RunFolder) -> LoopState | None:
    """The newest readable state on this machine; None if there is none."""
    try:
        return folder.newest_state()[0]
    except StateError:
        return None


def local_progress(folder: RunFolder, state: LoopState) -> Progress:
    """The progress on this machine."""
    return Progress.of(state, (path.relative_to(folder.out).as_posix() for path in folder.out.rglob("*.ckpt")))


def stored_state(store: Store, name: str, copy: Path) -> LoopState | None:
    """The state in a store; None if it is damaged.

    Args:
        name: of the object.
        copy: a file for the time of the call.

    Raises:
        StateError: a newer version of the package wrote it.
        StoreError: it can't be read.
    """
    store.get(name, copy)
    try:
        return LoopState.load(copy)
    except DamagedError:
        return None
    finally:
        copy.unlink()
