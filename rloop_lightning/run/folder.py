"""The layout of a run folder.

    runs/NAME/
      config.yaml  state.json  state.previous.json  metrics.csv  results.md  report.html  plots/*.png
      run.lock                                          held by the process that runs; empty when none does
      tensorboard/  loggers.json                        the run as TensorBoard shows it; the user's own loggers
      data/*.jsonl                                      problem sets passed as Python objects
      round-0/explore/{checkpoints,policy,faults,metrics.jsonl}    phi; the rows of the phase in metrics.csv
      round-0/pool/*.parquet  round-0/expert.parquet    every rollout, and the expert set
      round-0/consolidate/{checkpoints,faults,metrics.jsonl}
      round-0/policy/                                   theta_1, the initial policy of the next round
      round-0/evaluations/*.parquet                     a row per problem: base, step-000020, explored, consolidated
      round-0/evaluate/*.jsonl                          the records of base, explored and consolidated
      final/                                            the run's final policy, a plain Hugging Face folder
      final-merged/                                     the final adapter merged into its model (--policy.lora.merge)

With an adapter, policies are adapter folders. `--loop.keep_policies last` deletes those that are needed no more.
`explore` and `consolidate` also contain `state.json`, the state of the run at the start of the phase.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rloop_lightning.algorithms.consolidation import Start
from rloop_lightning.callbacks.checkpoint import checkpoint_step, checkpoints
from rloop_lightning.errors import DamagedError, StateError
from rloop_lightning.rollouts.pool import RolloutPool
from rloop_lightning.run.saves import SavesListener
from rloop_lightning.run.state import TRAINS, LoopState, Stage, plan
from rloop_lightning.system.checksums import SUMS

_HERE = "{run}/"
"""Prefix of settings that are paths relative to the run folder, so that the folder can be moved."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run.

    Args:
        out: the run folder.
        address: the URL of the store that has a copy of it, without credentials; empty if there is none.
        listener: is told what the run has saved.
    """

    out: Path
    address: str = ""
    listener: SavesListener | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        """What `--out` and `--resume` take for this run."""
        return self.address or str(self.out)

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
    def lock(self) -> Path:
        """The lock of the process that runs (claim.py)."""
        return self.out / "run.lock"

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def config(self) -> Path:
        """The settings of the run, for readers and for `--config`. A resume reads them from the state."""
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
    def report(self) -> Path:
        """The page of the run."""
        return self.out / "report.html"

    @property
    def plots(self) -> Path:
        return self.out / "plots"

    def pool_plot(self, stage: Stage) -> Path:
        """The plot of the round's pool."""
        return self.plots / f"round-{stage.round}-pool.png"

    @property
    def metrics(self) -> Path:
        return self.out / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """The TensorBoard logs of all phases."""
        return self.out / "tensorboard"

    @property
    def loggers(self) -> Path:
        """What is known of the user's loggers (loggers.py)."""
        return self.out / "loggers.json"

    @property
    def final(self) -> Path:
        return self.out / "final"

    @property
    def merged(self) -> Path:
        """The final policy with its adapter merged, a plain Hugging Face folder."""
        return self.out / "final-merged"

    def round(self, stage: Stage) -> Path:
        return self.out / f"round-{stage.round}"

    def phase(self, stage: Stage) -> Path:
        """The folder that only this phase writes to."""
        return self.round(stage) / stage.phase

    def faults(self, stage: Stage) -> Path:
        """The rollouts of the phase's skipped updates."""
        return self.phase(stage) / "faults"

    def pool(self, stage: Stage) -> RolloutPool:
        """The pool of the stage's round."""
        return RolloutPool(self.pools(stage)[-1])

    def pools(self, stage: Stage) -> list[Path]:
        """The pool folders of all rounds up to the stage's."""
        return [self.out / f"round-{number}" / "pool" for number in range(stage.round + 1)]

    def existing_pools(self) -> dict[int, RolloutPool]:
        """The pools that are there, by round."""
        found = {
            int(match[1]): RolloutPool(path)
            for path in self.out.glob("round-*/pool")
            if (match := re.fullmatch(r"round-(\d+)", path.parent.name))
        }
        return dict(sorted(found.items()))

    def expert_set(self, stage: Stage) -> Path:
        """The expert set of the stage's round."""
        return self.round(stage) / "expert.parquet"

    def evaluations(self, stage: Stage) -> Path:
        """The folder of the records of the round's evaluations."""
        return self.round(stage) / "evaluations"

    def evaluation(self, stage: Stage) -> Path:
        """The record of an evaluation between phases."""
        return self.evaluations(stage) / f"{stage.which}.parquet"

    def earlier_evaluations(self, stage: Stage) -> list[Path]:
        """The records of the evaluations between phases before a stage, in order; some may not exist."""
        earlier = itertools.takewhile(lambda one: one != stage, plan(stage.round + 1, consolidates=True))
        return [self.evaluation(one) for one in earlier if one.phase == "evaluate"]

    def record(self, stage: Stage) -> Path:
        """The record of the stage's rows of metrics.csv."""
        return self.phase(stage) / (f"{stage.which}.jsonl" if stage.phase == "evaluate" else "metrics.jsonl")

    def records(self) -> list[Path]:
        """The existing records of all stages."""
        return [*self.out.glob("round-*/*/metrics.jsonl"), *self.out.glob("round-*/evaluate/*.jsonl")]

    def policy(self, stage: Stage) -> Path:
        """The final policy of a phase, or the policy that an evaluation measures (except the base policy)."""
        return self.round(stage) / ("explore/policy" if stage.which == "explored" else "policy")

    def holds_policy(self, path: Path) -> bool:
        """Whether a policy folder has files of a policy. Where one was deleted, files of others may be left."""
        return any((path / name).exists() for name in ("config.json", SUMS))

    def initial_policy(self, stage: Stage) -> Path | None:
        """theta_k, the initial policy of the stage's round; None is the base policy."""
        return self.out / f"round-{stage.round - 1}" / "policy" if stage.round else None

    def explored_policy(self, stage: Stage) -> Path:
        """phi, the explored policy of the stage's round."""
        return self.policy(replace(stage, which="explored"))

    def start(self, stage: Stage, start: Start) -> Path | None:
        """The policy that a consolidation starts from; None is the base policy."""
        return {
            "initial": self.initial_policy(stage),
            "explored": self.explored_policy(stage),
            "base": None,
        }[start]

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
        """The existing state files, newest first, with those of the beginnings of phases."""
        current = [path for path in (self.state, self.previous_state) if path.exists()]
        stages = [
            Stage(int(match[1]), phase)
            for path in self.out.glob("round-*")
            if (match := re.fullmatch(r"round-(\d+)", path.name))
            for phase in TRAINS
        ]
        stages.sort(key=lambda stage: (stage.round, TRAINS.index(stage.phase)), reverse=True)
        return [*current, *(path for path in map(self.state_before, stages) if path.exists())]

    def newest_state(self) -> tuple[LoopState | None, list[str]]:
        """The newest readable state, None if the run has none yet, and what is wrong with newer ones.

        Raises:
            StateError: all of them are damaged, or a newer version of the package wrote the newest.
        """
        damage = []
        for path in self.states:
            try:
                state = LoopState.load(path)
            except DamagedError as error:
                damage.append(str(error))
                continue
            warnings = [f"{line}; the run resumes from {path.relative_to(self.out)}" for line in damage]
            warnings += _damage(self.previous_state) if path == self.state and self.previous_state.exists() else []
            return state, warnings
        if damage:
            damage.append(f"--resume {self}: no other record of its state exists; start a new run")
            raise StateError("\n".join(damage))
        return None, []

    def save_state(self, state: LoopState, *, restarts: bool = False) -> None:
        """Write `state` with its count, and keep the old one as `previous_state`. A restart is always counted."""
        try:
            before = LoopState.load(self.state)
        except DamagedError:
            before = None  # keep the existing `previous_state`
        same = before is not None and before.checksum == state.checksum
        if before is not None and not same:
            before.save(self.previous_state)
        if not same or restarts:
            replace(state, saves=(before or state).saves + 1).save(self.state)
        if self.listener is not None:
            self.listener.state_saved()

    def checkpoint_saved(self) -> None:
        """Tell the listener that a checkpoint is on disk."""
        if self.listener is not None:
            self.listener.checkpoint_saved()


def _damage(state: Path) -> list[str]:
    """A warning if a state that is not needed is damaged."""
    try:
        LoopState.load(state)
        return []
    except DamagedError as error:
        return [f"{error}; the run does not need it"]
