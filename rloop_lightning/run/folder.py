"""Where a run keeps what its stages make.

    runs/NAME/
      config.yaml  state.json  state.previous.json  metrics.csv  results.md  plots/*.png
      data/*.jsonl                                      problem sets that were given as Python objects
      round-0/explore/{checkpoints,logs,policy,faults}  phi, the policy at the end of the exploration
      round-0/pool/*.parquet  round-0/expert.parquet    every rollout, and what the filter let through
      round-0/consolidate/{checkpoints,logs,faults}
      round-0/policy/                                   theta_1, what the next round begins with
      final/                                            the policy that the run hands over, a plain Hugging Face folder

`explore` and `consolidate` also hold `state.json`, the state that the run was in when the phase began.
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
"""A setting that begins so is a path inside of the run folder, wherever that was moved to."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run.

    Args:
        out: the run folder.
    """

    out: Path

    def setting_of(self, path: Path) -> str:
        """How config.yaml names a path inside of the run folder."""
        return f"{_HERE}{path.relative_to(self.out)}"

    def located(self, setting: Any) -> Any:
        """A setting whose paths inside of the run folder are as they are now; lists and dicts of them too."""
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
        """The settings that the run began with."""
        return self.out / "config.yaml"

    @property
    def base(self) -> Path:
        """The base policy, where it can't be read again from a folder that it came from."""
        return self.out / "base"

    @property
    def results(self) -> Path:
        """The table of all policies."""
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
        """What only this phase writes to."""
        return self.round(stage) / stage.phase

    def logs(self, stage: Stage) -> Path:
        """TensorBoard's, of the phase."""
        return self.phase(stage) / "logs"

    def faults(self, stage: Stage) -> Path:
        """The rollouts of the phase's updates that were skipped."""
        return self.phase(stage) / "faults"

    def pool(self, stage: Stage) -> RolloutPool:
        """Of the stage's round."""
        return RolloutPool(self.pools(stage)[-1])

    def pools(self, stage: Stage) -> list[Path]:
        """The folders of the pools up to that of the stage's round."""
        return [self.out / f"round-{number}" / "pool" for number in range(stage.round + 1)]

    def expert_set(self, stage: Stage) -> Path:
        """Of the stage's round."""
        return self.round(stage) / "expert.parquet"

    def policy(self, stage: Stage) -> Path:
        """The policy that a phase ends with, or that an evaluation is of unless that is the base policy."""
        return self.round(stage) / ("explore/policy" if stage.which == "explored" else "policy")

    def initial_policy(self, stage: Stage) -> Path | None:
        """theta_k, what the stage's round begins with; None is the base policy."""
        return self.out / f"round-{stage.round - 1}" / "policy" if stage.round else None

    def checkpoint_folder(self, stage: Stage) -> Path:
        """Of the phase."""
        return self.phase(stage) / "checkpoints"

    def checkpoints(self, stage: Stage) -> list[Path]:
        """Of the phase, oldest first."""
        return checkpoints(self.checkpoint_folder(stage))

    def steps_done(self, stage: Stage) -> int:
        """Training steps that the newest checkpoint of the phase has behind it."""
        saved = self.checkpoints(stage)
        return checkpoint_step(saved[-1]) if saved else 0

    def state_before(self, stage: Stage) -> Path:
        """The state in which the phase began."""
        return self.phase(stage) / self.state.name

    @property
    def state(self) -> Path:
        """Where the run stands."""
        return self.out / "state.json"

    @property
    def previous_state(self) -> Path:
        """What `state` held before, should that be damaged."""
        return self.out / "state.previous.json"

    @property
    def states(self) -> list[Path]:
        """The states that are there, the newest first."""
        return [path for path in (self.state, self.previous_state) if path.exists()]

    def save_state(self, state: LoopState) -> None:
        """Write `state`, and keep what it held before as `previous_state`."""
        try:
            before = LoopState.load(self.state)
        except DamagedError:
            before = None  # the previous state is what is known
        if before is not None and before.checksum == state.checksum:
            return
        if before is not None:
            before.save(self.previous_state)
        state.save(self.state)
