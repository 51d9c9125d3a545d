"""Who is told what a run has saved."""

from __future__ import annotations

from typing import Protocol


class SavesListener(Protocol):
    """Is told what a run has saved, such as the copy of the run in a store (mirror.py)."""

    def state_saved(self) -> None:
        """A state is on disk, with all files that it needs."""

    def checkpoint_saved(self) -> None:
        """A checkpoint of a phase is on disk."""
