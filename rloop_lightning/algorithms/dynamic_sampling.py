"""Dynamic sampling: train on groups with both right and wrong rollouts (DAPO, arXiv 2503.14476, section 3.2)."""

from __future__ import annotations

from rloop_lightning.types import Group


def has_right_and_wrong(group: Group) -> bool:
    """0 < successes < G.

    The test uses success, not the reward: shaped rewards can differ within a group whose rollouts are all wrong.
    """
    return 0 < group.success_count < len(group.rollouts)
