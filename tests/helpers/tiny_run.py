"""The tiny run that many tests make: one round on the embedded policy, in a second, from arguments to files on disk.

The fixtures `tiny` and `finished` of tests/conftest.py are such a run to make, and one that is made and only read.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from killing import Fault, nothing_drawn, run_fit

from rloop_lightning.cli.main import main

TINY: Mapping[str, Mapping[str, Any]] = {
    "policy": {"model": "countdown"},
    "data": {"name": "countdown", "train_size": 40, "validation_size": 4, "test_size": 4, "ood_size": 4},
    "engine": {"max_new_tokens": 24},
    "algo": {"name": "dapo", "lr": 1e-4, "warmup_steps": 2, "updates_per_step": 1, "dynamic_sampling": False},
    "consolidate": {"name": "rft", "lr": 1e-4, "epochs": 2, "rollouts_per_update": 4},
    "loop": {
        "rounds": 1,
        "explore_steps": 4,
        "problems_per_step": 4,
        "rollouts_per_problem": 4,
        "checkpoint_every_n_steps": 1,
    },
    "filter": {"enabled": False},
    "eval": {"samples": 2, "k": [1, 2], "max_problems": 2, "sets": ["test"]},
}


@dataclass(frozen=True)
class TinyRun:
    """How a tiny run is made.

    Args:
        config: the settings file.
        draws: whether it draws plots, which take a third of its time.
    """

    config: Path
    draws: bool = False

    @classmethod
    def written(cls, folder: Path, **changes: Mapping[str, Any]) -> TinyRun:
        """With changes to the settings, by group; a change of a part's name drops the settings of the part before."""
        settings = {group: dict(values) for group, values in TINY.items()}
        for group, values in changes.items():
            kept = {} if "name" in values else settings.get(group, {})
            settings[group] = {**kept, **values}
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(settings))
        return cls(path)

    def fit(self, out: Path | str, *arguments: str) -> int:
        """Exit code of `rloop-fit` in this process."""
        with nullcontext() if self.draws else nothing_drawn():
            return main(["--config", str(self.config), "--out", str(out), *arguments])

    def fit_apart(
        self,
        out: Path | str,
        log: Path,
        kill: Fault | None = None,
        *,
        arguments: tuple[str, ...] = (),
        debug: bool = True,
    ) -> int:
        """Exit code of `rloop-fit` in a process of its own, -9 where it was killed."""
        given = ["--config", str(self.config), "--out", str(out), *arguments]
        return run_fit(given, log, kill, debug=debug, draws=self.draws)

    def finished(self, out: Path, *arguments: str) -> Path:
        """The folder of a run that came to its end, in a process of its own."""
        log = out.with_suffix(".log")
        assert self.fit_apart(out, log, arguments=arguments) == 0, log.read_text()
        return out


def resume(out: Path | str, log: Path, kill: Fault | None = None, *, debug: bool = True, draws: bool = False) -> int:
    """Exit code of `rloop-fit --resume` in a process of its own."""
    return run_fit(["--resume", str(out)], log, kill, debug=debug, draws=draws)
