"""The layout of a run folder.

    runs/NAME/
      config.yaml  state.json  state.previous.json  metrics.csv  results.md  plots/*.png
      data/*.jsonl                                      problem sets passed as Python objects
      round-0/explore/{checkpoints,logs,policy,faults}  phi, the policy at the end of the exploration
      round-0/pool/*.parquet  round-0/expert.parquet    every rollout, and the expert set
      round-0/consolidate/{checkpoints,logs,faults}
      round-0/policy/                                   theta_1, the initial policy of the next round
      final/                                            the run's final policy, a plain Hugging Face folder

`explore` and `consolidate` also contain `state.json`, the state of the run at the start of the phase.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rloop_lightning.callbacks.checkpoint import checkpoint_step, checkpoints
from rloop_lightning.errors import DamagedError
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.run.state import LoopState, Stage

_HERE = "{run}/"
"""Prefix of settings that are paths relative to the run folder, so that the folder can be moved."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run.

    Args:
        out: the run folder.
    """

    out: Path

    def setting_of(self, path: Path) -> str:
        """The setting in config.yaml for a path in the run folder."""
        return f"{_HERE}{path.relative_to(self.out)}"

    def located(self, setting: Any) -> Any:
        """Resolve the run-folder paths in a setting, including those in lists and dicts."""
        if isinstance(setting, str) and setting.startswith(_HERE):
            return str(self.out / setting.removeprefix(_HERE))
        if isinstance(setting, dict):
            return {name: self.located(value) for name, value in setting.items()}
        return [self.located(value) for value in setting] if isinstance(setting, list) else setting

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def config(self) -> Path:
        """The settings that the run started with."""
        return self.out / "config.yaml"

    @property
    def problems(self) -> Path:
        """The record of the problems that the run started with."""
        return self.out / "problems.parquet"

    @property
    def base(self) -> Path:
        """A copy of the base policy, if it did not come from a local folder."""
        return self.out / "base"

    @property
    def results(self) -> Path:
        """The results table of all policies."""
        return self.out / "results.md"

    @property
    def plots(self) -> Path:
        return self.out / "plots"

    @property
    def metrics(self) -> Path:
        return self.out / "metrics.csv"

    @property
    def final(self) -> Path:
        return self.out / "final"

    def round(self, stage: Stage) -> Path:
        return self.out / f"round-{stage.round}"

    def phase(self, stage: Stage) -> Path:
        """The folder that only this phase writes to."""
        return self.round(stage) / stage.phase

    def logs(self, stage: Stage) -> Path:
        """The phase's TensorBoard logs."""
        return self.phase(stage) / "logs"

    def faults(self, stage: Stage) -> Path:
        """The rollouts of the phase's skipped updates."""
        return self.phase(stage) / "faults"

    def pool(self, stage: Stage) -> RolloutPool:
        """The pool of the stage's round."""
        return RolloutPool(self.pools(stage)[-1])

    def pools(self, stage: Stage) -> list[Path]:
        """The pool folders of all rounds up to the stage's."""
        return [self.out / f"round-{number}" / "pool" for number in range(stage.round + 1)]

    def expert_set(self, stage: Stage) -> Path:
        """The expert set of the stage's round."""
        return self.round(stage) / "expert.parquet"

    def policy(self, stage: Stage) -> Path:
        """The final policy of a phase, or the policy that an evaluation measures (except the base policy)."""
        return self.round(stage) / ("explore/policy" if stage.which == "explored" else "policy")

    def initial_policy(self, stage: Stage) -> Path | None:
        """theta_k, the initial policy of the stage's round; None is the base policy."""
        return self.out / f"round-{stage.round - 1}" / "policy" if stage.round else None

    def checkpoint_folder(self, stage: Stage) -> Path:
        """The folder of the phase's checkpoints."""
        return self.phase(stage) / "checkpoints"

    def checkpoints(self, stage: Stage) -> list[Path]:
        """The phase's checkpoints, oldest first."""
        return checkpoints(self.checkpoint_folder(stage))

    def steps_done(self, stage: Stage) -> int:
        """The number of training steps done at the phase's newest checkpoint."""
        saved = self.checkpoints(stage)
        return checkpoint_step(saved[-1]) if saved else 0

    def state_before(self, stage: Stage) -> Path:
        """The state at the start of the phase."""
        return self.phase(stage) / self.state.name

    @property
    def state(self) -> Path:
        """The current state of the run."""
        return self.out / "state.json"

    @property
    def previous_state(self) -> Path:
        """The state before the current one, a fallback if that is damaged."""
        return self.out / "state.previous.json"

    @property
    def states(self) -> list[Path]:
        """The existing state files, newest first."""
        return [path for path in (self.state, self.previous_state) if path.exists()]

    def save_state(self, state: LoopState) -> None:
        """Write `state`, and keep the old one as `previous_state`."""
        try:
            before = LoopState.load(self.state)
        except DamagedError:
            before = None  # keep the existing `previous_state`
        if before is not None and before.checksum == state.checksum:
            return
        if before is not None:
            before.save(self.previous_state)
        state.save(self.state)
