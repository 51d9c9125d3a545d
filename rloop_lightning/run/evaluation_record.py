"""The record of an evaluation that a path means: a file, a policy of an evaluation, or what a run handed over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.errors import DamagedError, StateError
from rloop_lightning.evaluation.record import read_record
from rloop_lightning.run.evaluated_policies import run_at
from rloop_lightning.run.evaluation_folder import EvaluationFolder, EvaluationState
from rloop_lightning.run.state import Stage
from rloop_lightning.system.terminal import one_line

_SHOWN = 3  # problems that a message names


@dataclass(frozen=True)
class EvaluationRecord:
    """A record and where it was found.

    Args:
        word: the user's word for it, on one line.
        path: the file.
        policy: name of the policy.
        problems: the record of the problems, which may be missing.
    """

    word: str
    path: Path
    policy: str
    problems: Path

    def __str__(self) -> str:
        return f"{one_line(self.policy, limit=200)}, {one_line(str(self.path), limit=0)}"


def find_record(word: str) -> EvaluationRecord:
    """The record that a word means.

    Raises:
        ValueError: there is none, or there are several.
    """
    shown = one_line(word, limit=200)
    place = Path(word).expanduser()
    if (run := run_at(word)) is not None:
        path, problems = _of_run(word, shown), run.problems
    elif place.is_dir():
        policy = _of_evaluation(place, shown)
        folder = EvaluationFolder(policy.parent)
        path, problems = folder.record(policy), folder.problems(policy)
    else:
        # Of a run, records are in round-K/evaluations; of rloop-eval, the record of the problems is beside it.
        beside = EvaluationFolder(place.parent.parent).problems(place.parent)
        path, problems = place, beside if beside.exists() else place.parent.parent.parent / beside.name
    if not path.is_file():
        raise ValueError(
            f"{shown}: no evaluation there ({one_line(str(path), limit=0)} is missing); give a policy's folder of an "
            "evaluation, a run that is complete, or the Parquet file of an evaluation"
        )
    rows = read_record(path)
    if not len(rows):
        raise ValueError(f"{shown}: {one_line(str(path), limit=0)} holds no problems")
    return EvaluationRecord(shown, path, str(rows["policy"][0].as_py()), problems)


def changed_between(first: EvaluationRecord, second: EvaluationRecord, name: str) -> Iterator[str]:
    """An error if problems of the set `name` have the same id in both, and another text."""
    texts = [_digests(one.problems, name) for one in (first, second)]
    differing = [one for one in texts[0] if one in texts[1] and texts[0][one] != texts[1][one]]
    if differing:
        some = ", ".join(map(one_line, differing[:_SHOWN])) + (" ..." if len(differing) > _SHOWN else "")
        yield (
            f"set {one_line(name)}: {len(differing):,} problems have the same id in {first.word} and {second.word}, "
            f"and another text: {some}; evaluate both on the same file"
        )


def _of_run(word: str, shown: str) -> Path:
    """The record of the policy that a run handed over."""
    run = run_at(word)
    assert run is not None
    try:
        state, _ = run.newest_state()
    except StateError as error:
        raise ValueError(str(error)) from error
    numbers = range(len(run.existing_pools()) or 1)
    stages = [Stage(0, "evaluate", "base")]
    stages += [Stage(number, "evaluate", which) for number in numbers for which in ("explored", "consolidated")]
    selected = "" if state is None else state.selected
    stage = next((stage for stage in stages if stage.name == selected), None)
    if stage is None:
        raise ValueError(f"{shown}: the run has handed over no policy yet; give the file of one of its evaluations")
    return run.evaluation(stage)


def _of_evaluation(place: Path, shown: str) -> Path:
    """A policy's folder, given itself, or as the evaluation of this policy alone."""
    folder = EvaluationFolder(place)
    if not folder.state.exists():
        return place
    try:
        state = EvaluationState.load(folder.state)
    except (DamagedError, StateError) as error:
        raise ValueError(str(error)) from error
    policies = [folder.policy(state.policies, number) for number in range(len(state.policies))]
    if len(policies) > 1:
        listed = ", ".join(one_line(str(path), limit=0) for path in policies)
        raise ValueError(f"{shown}: it has {len(policies)} policies; give the folder of one: {listed}")
    return policies[0]


def _digests(path: Path, name: str) -> dict[str, bytes]:
    """Digests of the texts by problem id; empty without a readable record."""
    try:
        rows = pq.read_table(path, columns=["set", "id", "text"]).to_pylist()
    except (OSError, pa.ArrowException):
        return {}
    return {row["id"]: row["text"] for row in rows if row["set"] == name}
