"""Dynamic sampling: train on groups that hold both right and wrong rollouts (DAPO, arXiv 2503.14476, section 3.2)."""

from __future__ import annotations

from rloop_lightning.types import Group


def has_right_and_wrong(group: Group) -> bool:
    """0 < successes < G.

    It looks at success, not at the reward: shaped rewards differ inside a group that is all wrong, too.
    """
    return 0 < group.success_count < len(group.rollouts)
