"""Followers of the sampling of rollout steps: progress bars, samples in the log, checks of the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rloop_lightning.types import Group


class StreamListener:
    """Follows the sampling of rollout steps; override what you need."""

    def sampling(self, *, kept: int, needed: int, drawn: int, tokens: int) -> None:
        """Before each engine call of a rollout step, in the thread that samples it: what the step has so far.

        Args:
            kept: groups kept.
            needed: groups that the step trains on.
            drawn: groups generated.
            tokens: completion tokens generated.
        """

    def waiting(self) -> None:
        """Several times a second, in the main thread, while it waits for a step that another thread samples."""

    def sampled(self, step: int, groups: Sequence[Group], metrics: Mapping[str, float]) -> None:
        """All groups of a rollout step are there, before it trains, or too few for it to train.

        Args:
            step: rollout step of the phase, from 0.
            groups: every generated group, including those that were not kept.
            metrics: the step's `rollout/...` and `reward/...` metrics.
        """
