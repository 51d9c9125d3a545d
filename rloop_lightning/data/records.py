"""Problem sets from Python objects, as the files that a run keeps in its own folder.

    sets = record_sets([{"problem": "1+1=", "answer": "2"}])    {"train": [...]}, None for what holds no records
    write_sets(sets, run / "data")                              {"train": run / "data/train.jsonl"}

Records are rows of a data set: a problem, its gold answer, and whatever else they hold.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from rloop_lightning.system.files import atomic_path
from rloop_lightning.system.terminal import one_line

Records = Iterable[Mapping[str, Any]]
"""A list of dicts, a `datasets.Dataset`, or anything else that gives a dict for each row."""

_SET_NAME = re.compile(r"[\w-][\w.-]*")  # it becomes the name of a file


def record_sets(value: Any) -> dict[str, Records] | None:
    """Problem sets by name: the value itself as `train`, or what a dict such as a `DatasetDict` holds.

    None where the value is something else: a name, a class, settings.
    """
    if _holds_records(value):
        return {"train": value}
    if isinstance(value, Mapping) and value and all(map(_holds_records, value.values())):
        return {str(name): records for name, records in value.items()}
    return None


def record_faults(sets: Mapping[str, Records]) -> list[str]:
    """What is wrong with the names of the sets, one message each."""
    named = [name for name in sets if not _SET_NAME.fullmatch(name)]
    wrong = [f"data: {one_line(name)!r} can't name a set; take letters, digits, `_`, `-` and `.`" for name in named]
    if "train" not in sets:
        wrong.append(f"data: there is no set named train, only {', '.join(map(one_line, sets))}; name one of them so")
    return wrong


def write_sets(sets: Mapping[str, Records], folder: Path) -> dict[str, Path]:
    """Write each set as a JSONL file, all of them or none. A file with the same rows may be there, and stays.

    Raises:
        ValueError: rows can't be written as JSON, or a file with others is there; names the first of each set.
        WriteError: a file can't be written.
    """
    files = {name: folder / f"{name}.jsonl" for name in sets}
    new: list[Path] = []
    wrong = []
    try:
        for name, records in sets.items():
            was_there = os.path.lexists(files[name])
            try:
                _write(name, records, files[name])
            except _RefusedError as error:
                wrong.append(str(error))
            else:
                new += [] if was_there else [files[name]]
        if wrong:
            raise ValueError("\n".join(wrong))
    except BaseException:
        for file in new:
            file.unlink()
        raise
    return files


class _RefusedError(Exception):
    """A row has no form in JSON, or another file is there."""


def _write(name: str, records: Records, file: Path) -> None:
    with atomic_path(file) as partial:
        with partial.open("w", encoding="utf-8") as lines:
            for number, record in enumerate(records):
                try:
                    lines.write(json.dumps(record, default=_plain) + "\n")
                except (TypeError, ValueError) as error:
                    raise _RefusedError(
                        f"data: {name}[{number}] can't be written as JSON ({error}); keep the columns of text, numbers "
                        "and lists"
                    ) from error
        if os.path.lexists(file) and (file.is_symlink() or not filecmp.cmp(partial, file, shallow=False)):
            raise _RefusedError(f"data: {file} is there with other rows; move it away, or choose another out")


def _holds_records(value: Any) -> bool:
    """Whether it is a list of dicts, or one of `datasets`' tables, which know their columns."""
    if isinstance(value, Mapping | str | type):
        return False
    if isinstance(value, Sequence):
        return bool(value) and all(isinstance(row, Mapping) for row in value)
    return isinstance(value, Iterable) and hasattr(value, "column_names")


def _plain(value: Any) -> Any:
    """Arrays and their numbers as lists and numbers, any mapping as a dict, a decimal as the text of its digits."""
    if isinstance(value, Decimal):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no form in JSON")
