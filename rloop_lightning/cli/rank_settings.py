"""The settings that rank 0 gives the other processes of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What rank 0 tells the others before the run.

    Args:
        yaml: its accepted settings.
        out: the run folder, which rank 0 alone uses.
        longest_rollout: tokens of the longest prompt and completion (`RolloutEngine.longest_rollout`).
    """

    yaml: str
    out: str
    longest_rollout: int | None
