"""Rewards by their short names; `--reward` takes a name of `REWARDS`, a class path, or the path of a function."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rloop_lightning.rewards.verdict import GoldReading, Verdict, check, read_golds

__all__ = ["REWARDS", "GoldReading", "Verdict", "check", "read_golds"]

REWARDS = {
    "countdown": "rloop_lightning.rewards.countdown.CountdownReward",
    "function": "rloop_lightning.rewards.function.FunctionReward",
    "math": "rloop_lightning.rewards.math.MathReward",
    "weighted": "rloop_lightning.rewards.weighted.WeightedSum",
}


def __getattr__(name: str) -> Any:
    """`check` and what it returns, imported when they are first used: workers import this package too."""
    if name in ("check", "Verdict", "GoldReading", "read_golds"):
        return getattr(import_module("rloop_lightning.rewards.verdict"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
