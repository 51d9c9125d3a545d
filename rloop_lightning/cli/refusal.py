"""Errors in the settings: their form, and the end of the program."""

from __future__ import annotations

from collections.abc import Sequence

from rloop_lightning.cli.arguments import UsageError
from rloop_lightning.model.config import PolicyConfig


def of_policy(config: PolicyConfig, faults: Sequence[str]) -> list[str]:
    """Errors in a policy with the option that they are about: --policy.model, unless they name another."""
    return [fault if fault.startswith("--policy.") else f"--policy.model {config.model}: {fault}" for fault in faults]


def refuse(wrong: Sequence[str]) -> None:
    """Raise UsageError if there are errors."""
    if wrong:
        raise UsageError("\n".join(dict.fromkeys(wrong)))
