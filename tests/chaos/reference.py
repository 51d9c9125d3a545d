"""The uninterrupted run that injected runs are compared with: two rounds, captures and evaluations inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from chaos.faults import Recorded, Within
from killing import Fault, run_fit
from tiny_run import TinyRun

LIMIT_S = 240.0
"""A process that runs longer hangs: a run takes some seconds, on a busy machine some more."""

_TWO_ROUNDS: Mapping[str, Mapping[str, Any]] = {
    "algo": {"updates_per_step": 2},
    "loop": {"rounds": 2, "explore_steps": 3, "checkpoint_every_n_steps": 1},
    "capture": {"every_n_steps": 2, "extra_rollouts": 2, "extra_problems": 4},
    "eval": {"every_n_steps": 2, "sets_inside": ["test"]},
}


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run.

    Args:
        tiny: how such a run is made.
        out: its folder.
        seconds: how long it took.
        operations: number of its file operations.
    """

    tiny: TinyRun
    out: Path
    seconds: float
    operations: int

    @classmethod
    def made(cls, folder: Path, **changes: Mapping[str, Any]) -> Reference:
        """Make the run in a new folder, with changes to its settings."""
        folder.mkdir(parents=True)
        tiny = TinyRun.written(folder, **{**_TWO_ROUNDS, **changes})
        out, log, operations = folder / "run", folder / "log", folder / "operations"
        started = perf_counter()
        code = start(tiny, out, log, Recorded(out, operations))
        assert code == 0, log.read_text()
        return cls(tiny, out, perf_counter() - started, len(operations.read_text().splitlines()))


def start(tiny: TinyRun, out: Path, log: Path, fault: Fault | None = None) -> int:
    """Exit code of a new run; -14 if it hangs."""
    return run_fit(["--config", str(tiny.config), "--out", str(out)], log, Within(LIMIT_S, fault), debug=False)


def resume(out: Path, log: Path, fault: Fault | None = None, *, restart_from: str = "") -> int:
    """Exit code of a resume, from a phase if one is named; -14 if it hangs."""
    restart = ["--restart_from", restart_from] if restart_from else []
    return run_fit(["--resume", str(out), *restart], log, Within(LIMIT_S, fault), debug=False)
