"""The record of the problems that a run began with: `problems.parquet`, which a resume compares with what it reads.

Problem ids may be places in a file. After a change of the file, the same id would mean another problem, and the pool
and the success rates would mix the two.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rloop_lightning.data.base import ProblemSource
from rloop_lightning.system.checksums import add_checksum, checksums, digest
from rloop_lightning.system.files import atomic_path
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Problem

_log = logging.getLogger(__name__)

_DIGEST_BYTES = 12
_SCHEMA = pa.schema(
    [
        pa.field(name, type_, nullable=False)
        for name, type_ in {
            "set": pa.string(),
            "id": pa.string(),
            "text": pa.binary(_DIGEST_BYTES),  # the problem as its source gives it
            "answer": pa.binary(_DIGEST_BYTES),  # the gold answer, and the metadata for the reward
            "prompt": pa.binary(_DIGEST_BYTES),  # the problem as the policy sees it
        }.items()
    ]
)
_DATE_KEY = b"date"
_SHOWN = 3  # problems that a message names

_WHAT_CHANGED = {
    "text": "the text of {problems} is different now",
    "answer": "the gold answer of {problems} is different now",
    "prompt": "{problems} give another prompt now, from the same text: the chat template of --policy.model has changed",
}


def write_record(path: Path, source: ProblemSource, rendered: ProblemSource, today: date) -> None:
    """Write the record.

    Args:
        path: the Parquet file.
        source: the problem sets as their source gives them.
        rendered: the same sets as the policy sees them.
        today: the date that chat templates saw.
    """
    table = pa.Table.from_pylist(list(_rows(source, rendered)), schema=_SCHEMA)
    with atomic_path(path) as partial:
        pq.write_table(table.replace_schema_metadata({_DATE_KEY: today.isoformat()}), partial, compression="zstd")


def keep_record(path: Path, source: ProblemSource, rendered: ProblemSource, today: date) -> None:
    """Write the record with its checksum, unless it is there and intact. Args: as `write_record`."""
    listed = checksums(path.parent).get(path.name)
    if listed is None and _read(path) is not None:  # a kill came between the two, or the run has version 0
        add_checksum(path)
    elif listed is None or _is_damaged(path):
        write_record(path, source, rendered, today)
        if listed is not None:
            same = digest(path) == listed
            what = "is what it was" if same else "nothing tells whether the problems are still those of the run"
            _log.warning(f"{path} was damaged or missing; it is written again, and {what}")
        add_checksum(path)


def recorded_date(path: Path) -> date:
    """The date that chat templates saw when the run began; today without a readable record."""
    try:
        return date.fromisoformat(pq.read_schema(path).metadata[_DATE_KEY].decode())
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return date.today()


def changed_problems(path: Path, source: ProblemSource, rendered: ProblemSource, began: str = "run") -> list[str]:
    """How the problem sets differ from the recorded ones, one message each; none without a readable record.

    Args:
        path, source, rendered: as `write_record`.
        began: what began with the recorded ones, for messages.
    """
    recorded = None if _is_damaged(path) else _read(path)
    if recorded is None:  # `keep_record` tells it
        return []
    before, now = _by_set(recorded), _by_set(_rows(source, rendered))
    faults = [f"the set {one_line(name)} is gone" for name in before.keys() - now.keys()]
    faults += [f"the set {one_line(name)} is new" for name in now.keys() - before.keys()]
    for name in before.keys() & now.keys():
        faults += [f"{one_line(name)}: {fault}" for fault in _differences(before[name], now[name])]
    advice = f"; restore --data as it was when the {began} started, or start a new {began}"
    return [f"--resume: the problems are not those of the {began}: {fault}{advice}" for fault in sorted(faults)]


def changed_training_problems(
    path: Path, found: Sequence[Problem], shown: Sequence[Problem], ids: Collection[str]
) -> list[str]:
    """How some training problems differ from the recorded ones, one message each.

    Args:
        path: the record.
        found: those of `ids` that the source gives.
        shown: the same problems as the policy sees them.
        ids: the problems to compare.
    """
    recorded = None if _is_damaged(path) else _read(path)
    if recorded is None:
        return [f"{path} is missing or damaged: nothing tells whether the problems are still those of the run"]
    before = {row["id"]: row for row in recorded if row["set"] == "train" and row["id"] in ids}
    texts = {problem.id: problem.prompt for problem in found}
    now = {problem.id: _row("train", texts[problem.id], problem) for problem in shown}
    order = [name for name in before if name in now] + [name for name in now if name not in before]
    gone = [name for name in ids if name not in before and name not in now]
    faults = [f"{_some(gone)} {'is' if len(gone) == 1 else 'are'} gone"] if gone else []
    return [*faults, *_differences(before, {name: now[name] for name in order})]


def _is_damaged(path: Path) -> bool:
    """Whether the record is not what its checksum says; False without a checksum."""
    listed = checksums(path.parent).get(path.name)
    return listed is not None and (not path.is_file() or digest(path) != listed)


def _read(path: Path) -> list[dict] | None:
    try:
        return pq.read_table(path, schema=_SCHEMA).to_pylist()
    except (OSError, pa.ArrowException):
        return None


def _differences(before: Mapping[str, dict], now: Mapping[str, dict]) -> Iterator[str]:
    gone, new = ([name for name in one if name not in other] for one, other in ((before, now), (now, before)))
    if gone:
        yield f"{_some(gone)} {'is' if len(gone) == 1 else 'are'} gone"
    if new:
        yield f"{_some(new)} {'is' if len(new) == 1 else 'are'} new"
    changed: dict[str, list[str]] = {part: [] for part in _WHAT_CHANGED}
    for name in [name for name in before if name in now]:
        first = next((part for part in _WHAT_CHANGED if before[name][part] != now[name][part]), None)
        if first is not None:
            changed[first].append(name)
    yield from (_WHAT_CHANGED[part].format(problems=_some(names)) for part, names in changed.items() if names)
    if not gone and not new and list(before) != list(now):
        yield "their order is different now"


def _rows(source: ProblemSource, rendered: ProblemSource) -> Iterator[dict]:
    texts = {name: {problem.id: problem.prompt for problem in found} for name, found in _sets(source).items()}
    for name, problems in _sets(rendered).items():
        for problem in problems:
            yield _row(name, texts[name][problem.id], problem)


def _row(set_name: str, text: str, problem: Problem) -> dict:
    """A row of the record. `problem` is as the policy sees it, `text` as its source gives it."""
    answer = json.dumps([problem.answer, problem.metadata, *problem.alternatives], sort_keys=True, default=str)
    return {
        "set": set_name,
        "id": problem.id,
        "text": _digest(text),
        "answer": _digest(answer),
        "prompt": _digest(problem.prompt),
    }


def _sets(source: ProblemSource) -> dict[str, Sequence[Problem]]:
    return {"train": source.train(), **source.evaluation()}


def _by_set(rows: Iterator[dict] | list[dict]) -> dict[str, dict[str, dict]]:
    sets: dict[str, dict[str, dict]] = {}
    for row in rows:
        sets.setdefault(row["set"], {})[row["id"]] = row
    return sets


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(map(one_line, ids[:_SHOWN]))
    return f"{len(ids):,} problem{'' if len(ids) == 1 else 's'} ({shown}{' ...' if len(ids) > _SHOWN else ''})"
