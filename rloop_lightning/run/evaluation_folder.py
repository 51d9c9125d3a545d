"""The folder of an evaluation by `rloop-eval`.

OUT/
  config.yaml  evaluation.json            the settings; policies, date and machine, from which a resume goes on
  evaluation.lock                         held by the process that evaluates; empty when none does
  results.md  results.json                the tables, and all figures with their intervals
  00-NAME/                                a policy
    evaluation.parquet                    the record: a row per problem, as in a run's round-0/evaluations
    problems.parquet                      digests of the problems and prompts
    rollouts/00-SET/part-000000.parquet   every rollout of a set with its reward
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self

from rloop_lightning.errors import ClaimError, DamagedError
from rloop_lightning.system.files import write_text
from rloop_lightning.system.json_file import read_json, write_json
from rloop_lightning.system.lock import FolderLock, LockedError
from rloop_lightning.system.terminal import one_line

EVALUATION_VERSION = 1
"""The version of the format of evaluation.json and results.json."""

_LONGEST_NAME = 60  # characters of a name in a path
_NAMES_SHOWN = 4


@dataclass(frozen=True)
class PolicyToEvaluate:
    """A policy and where it is.

    Args:
        name: its name in tables and files, printable.
        source: folder or hub name of its weights.
        round, phase, step: of a run's policy, those of its evaluation in metrics.csv.
        checksums: of its files by name, if it is a local folder.
        revision: the commit on the hub, if it is a hub name.
        max_new_tokens: the completion length limit of its evaluation, tokens.
    """

    name: str
    source: str
    round: int = 0
    phase: str = "evaluate"
    step: int = 0
    checksums: Mapping[str, str] | None = None
    revision: str = ""
    max_new_tokens: int = 0


@dataclass(frozen=True)
class EvaluationState:
    """What an evaluation is of. It does not change until the evaluation is complete.

    Args:
        settings: all settings, as groups.
        policies: the policies, in order.
        began: the date that chat templates see; ISO format.
        machine: what decides the rounding of results (machine.py).
    """

    settings: Mapping[str, Any]
    policies: tuple[PolicyToEvaluate, ...]
    began: str
    machine: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        write_json(path, asdict(self), version=EVALUATION_VERSION)

    @classmethod
    def load(cls, path: Path) -> EvaluationState:
        """Read a saved state.

        Raises:
            DamagedError: the file is missing, or its content is not a state that was written.
            StateError: a newer version of the package wrote it.
        """
        values, _ = read_json(path, newest=EVALUATION_VERSION)
        try:
            policies = tuple(PolicyToEvaluate(**one) for one in values.pop("policies"))
            state = cls(policies=policies, **values)
            date.fromisoformat(state.began)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{path} is damaged ({one_line(str(error))})") from error
        texts = [text for one in policies for text in (one.name, one.source, one.phase, one.revision)]
        counts = [number for one in policies for number in (one.round, one.step, one.max_new_tokens)]
        mappings = [state.settings, state.machine, *(one.checksums for one in policies if one.checksums is not None)]
        kinds = ((texts, str), (counts, int), (mappings, dict))
        typed = all(isinstance(value, kind) for values, kind in kinds for value in values)
        if not policies or not typed or any(one.name != one_line(one.name, limit=0) for one in policies):
            raise DamagedError(f"{path} is damaged (it has values of wrong types)")
        return state


@dataclass(frozen=True)
class EvaluationFolder:
    """The paths of an evaluation.

    Args:
        out: the folder.
    """

    out: Path

    @property
    def state(self) -> Path:
        return self.out / "evaluation.json"

    @property
    def config(self) -> Path:
        """The settings, for readers and for `--config`. A resume reads them from the state."""
        return self.out / "config.yaml"

    @property
    def lock(self) -> Path:
        return self.out / "evaluation.lock"

    @property
    def table(self) -> Path:
        return self.out / "results.md"

    @property
    def results(self) -> Path:
        return self.out / "results.json"

    def policy(self, policies: Sequence[PolicyToEvaluate], number: int) -> Path:
        """The folder of a policy."""
        return self.out / f"{number:02d}-{_in_a_path(policies[number].name)}"

    def record(self, policy: Path) -> Path:
        """The record of a policy's evaluation, with a row per problem."""
        return policy / "evaluation.parquet"

    def problems(self, policy: Path) -> Path:
        """The record of the problems and prompts that a policy got."""
        return policy / "problems.parquet"

    def rollouts(self, policy: Path, sets: Sequence[str], name: str) -> Path:
        """The folder of a policy's rollouts on a set."""
        return policy / "rollouts" / f"{sets.index(name):02d}-{_in_a_path(name)}"


class EvaluationClaim:
    """One process's right to an evaluation's folder, from `take` to the end of the block.

    If the block ends before a policy is sampled, nothing of a new evaluation is left. Files of others stay.

    Args:
        folder: the folder. `named` says whether the user chose it; otherwise the first free name of NAME, NAME-2 and so
            on is taken.
    """

    def __init__(self, folder: EvaluationFolder, *, named: bool = True) -> None:
        self.folder = folder
        self._named = named
        self._lock: FolderLock | None = None
        self._made: list[Path] = []
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is None:
            return
        if self._begun and not any(path.is_dir() for path in self.folder.out.iterdir()):
            for path in (self.folder.config, self.folder.state):  # in this order: a state alone can be resumed
                path.unlink(missing_ok=True)
        ours = self._begun or self._lock.created
        self._release(self._lock, remove=ours and not self.folder.state.exists())

    def _release(self, lock: FolderLock, *, remove: bool) -> None:
        lock.release(remove=remove)
        self._lock = None
        for path in self._made if remove else ():
            with contextlib.suppress(OSError):  # it is not empty, or gone
                path.rmdir()

    def take(self, *, resumes: bool) -> None:
        """Take the folder; a new evaluation makes it.

        Raises:
            ClaimError: another process uses it, it contains other files, or it can't be written.
        """
        option = "--resume" if resumes else "--out"
        try:
            if resumes:
                self._acquire()
            else:
                self._make()
        except LockedError as error:
            raise ClaimError(f"{option} {error}; wait until it ends, or stop it") from error
        except OSError as error:
            out = one_line(str(self.folder.out), limit=200)
            if resumes and not self.folder.out.is_dir():
                raise ClaimError(f"{option} {out}: there is no such folder; give that of an evaluation") from error
            raise ClaimError(f"{option} {out}: can't write there: {error.strerror or error}; choose another") from error
        if self._lock is not None and not resumes and (fault := self._content_fault()):
            self._release(self._lock, remove=self._lock.created)
            raise ClaimError(fault)

    def begin(self, state: EvaluationState, settings: str) -> None:
        """Write the first state, and config.yaml, to the folder that was taken.

        Args:
            state: what the evaluation is of.
            settings: all settings, YAML.
        """
        self._begun = True
        state.save(self.folder.state)
        write_text(self.folder.config, settings)

    def _acquire(self) -> None:
        lock = FolderLock(self.folder.lock)
        lock.acquire()
        self._lock = lock

    def _make(self) -> None:
        out = self.folder.out
        number = 1
        while not self._named and os.path.lexists(self.folder.out):
            number += 1
            self.folder = EvaluationFolder(out.with_name(f"{out.name}-{number}"))
        place = self.folder.out
        self._made = [path for path in (place, *place.parents) if not os.path.lexists(path)]
        place.mkdir(parents=True, exist_ok=True)
        self._acquire()

    def _content_fault(self) -> str:
        out = one_line(str(self.folder.out), limit=200)
        if self.folder.state.exists():
            return f"--out {out} already contains an evaluation; continue it with --resume {out}, or choose another"
        own = {self.folder.lock.name}
        if self._lock is not None and not self._lock.created:  # all that a killed start leaves without a state
            own.add(f"{self.folder.state.name}.partial")
        names = sorted(name for name in os.listdir(self.folder.out) if name not in own)
        if not names:
            return ""
        shown = ", ".join(map(one_line, names[:_NAMES_SHOWN])) + (" ..." if len(names) > _NAMES_SHOWN else "")
        return f"--out {out} is not empty, it contains {shown}; choose a folder that is empty or does not exist"


def _in_a_path(name: str) -> str:
    """A name as a part of a path. Different names may give the same."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")[-_LONGEST_NAME:] or "x"
