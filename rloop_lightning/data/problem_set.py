"""Turns rows into problems and collects all faults, in one pass.

found = read_set("train", rows, layout)
found.problems, found.faults(), found.unreadable_golds
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rloop_lightning.data.presets import Extract, Preset, any_gold, gold_text, look_up
from rloop_lightning.data.rows import BadRow, Row
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Problem

_SHOWN = 5  # places or ids that a message names

_INSIDE = "--data.problem_field can name a nested field, such as prompt[0].content"


@dataclass(frozen=True)
class Layout:
    """The layout of a set: a preset, and the fields that the user sets instead.

    Args:
        metadata_fields: fields that are kept in `Problem.metadata` for the reward.
        skip_unreadable: skip a problem whose gold answer can't be read, instead of refusing the set.
    """

    preset: Preset
    problem_field: str | None = None
    answer_field: str | None = None
    id_field: str | None = None
    metadata_fields: tuple[str, ...] = ()
    skip_unreadable: bool = False

    @property
    def problem_fields(self) -> Sequence[str]:
        return self.preset.problem_fields if self.problem_field is None else (self.problem_field,)

    @property
    def answers(self) -> Mapping[str, Extract]:
        if self.answer_field is None:
            return self.preset.answers
        return {self.answer_field: self.preset.answers.get(self.answer_field, any_gold)}

    @property
    def id_fields(self) -> Sequence[str]:
        return self.preset.id_fields if self.id_field is None else (self.id_field,)


@dataclass
class ProblemSet:
    """The problems of a set, and its faults.

    Args:
        name: `train` or the name of the evaluation set.
        source: the file, folder or data set that the set was read from.
        rows: number of rows, good and bad.
        repeats: number of identical rows that were skipped, as the preset expects.
        bad_rows: place and reason, as one text, of each row that can't be read or holds no text.
        missing: places of the rows that lack a field, by field.
        unreadable_golds: ids of the problems whose gold answer can't be read.
        duplicate_ids: ids of several problems.
        skips_unreadable: whether the user asked to skip problems with unreadable gold answers.
        fields: the fields of the first row.
    """

    name: str
    source: str
    problems: list[Problem] = field(default_factory=list)
    rows: int = 0
    repeats: int = 0
    bad_rows: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    unreadable_golds: list[str] = field(default_factory=list)
    duplicate_ids: list[str] = field(default_factory=list)
    skips_unreadable: bool = False
    fields: tuple[str, ...] = ()

    def faults(self) -> list[str]:
        """One message per fault, naming places or ids."""
        return [f"{one_line(self.source, limit=200)}: {fault}" for fault in self._faults()]

    def _faults(self) -> Iterator[str]:
        yield from self.bad_rows[:_SHOWN]
        if len(self.bad_rows) > _SHOWN:
            yield f"{len(self.bad_rows) - _SHOWN} more rows that can't be read"
        for what, places in self.missing.items():
            has = ", ".join(map(one_line, self.fields)) or "none"
            yield f"{_rows(len(places))} without {what}: {_some(places)}; the fields of the first row are {has}"
        if self.duplicate_ids:
            ids = list(dict.fromkeys(self.duplicate_ids))
            yield f"ids must be unique; these stand for several problems: {_some(ids)}; choose another --data.id_field"
        if self.unreadable_golds and not self.skips_unreadable:
            yield (
                f"no gold answer can be read for {_some(self.unreadable_golds)}; fix them, choose another "
                "--data.answer_field or --data.preset, or skip them with --data.skip_unreadable true"
            )
        if not self.rows:
            yield "the set is empty"
        elif not self.problems and not any((self.bad_rows, self.missing)) and self.skips_unreadable:
            yield "the set is empty: no problem has a readable gold answer"


def read_set(name: str, source: str, rows: Iterable[Row | BadRow], layout: Layout) -> ProblemSet:
    """Read all problems of a set. Bad rows don't raise: see `ProblemSet.faults`."""
    found = ProblemSet(name, source, skips_unreadable=layout.skip_unreadable)
    seen: dict[str, Problem] = {}
    for row in rows:
        found.rows += 1
        if isinstance(row, BadRow):
            found.bad_rows.append(": ".join(filter(None, [row.place, one_line(row.reason, limit=300)])))
            continue
        found.fields = found.fields or tuple(str(name) for name in row.values)
        problem = _read_problem(row, layout, found)
        if problem is None:
            continue
        first = seen.setdefault(problem.id, problem)
        if first is problem:
            found.problems.append(problem)
        elif layout.preset.repeats and (first.prompt, first.answer) == (problem.prompt, problem.answer):
            found.repeats += 1
        else:
            found.duplicate_ids.append(problem.id)
    return found


def _read_problem(row: Row, layout: Layout, found: ProblemSet) -> Problem | None:
    """The row as a problem whose prompt is the bare statement; None, with the reason noted, if it is not one."""
    statement = _first(row, layout.problem_fields)
    golds = [(value, read) for name, read in layout.answers.items() if (value := _first(row, (name,))) is not None]
    wanted = {"problem": (statement is not None, layout.problem_fields), "answer": (bool(golds), tuple(layout.answers))}
    absent = [_what(flag, names) for flag, (there, names) in wanted.items() if not there]
    identity = _first(row, layout.id_fields)
    if identity is None and layout.id_field is not None:
        absent.append(_what("id", layout.id_fields))
    for what in absent:
        found.missing.setdefault(what, []).append(row.place)
    if statement is None or absent:
        return None
    if not isinstance(statement, str):
        found.bad_rows.append(f"{row.place}: the problem must be text, got {type(statement).__name__}; {_INSIDE}")
        return None
    name = row.place if identity is None else str(identity)
    wrong = {
        "the problem is empty": not statement.strip(),
        "the problem is not valid Unicode: it contains lone surrogates": not _is_text(statement),
        "the id must be text or an integer": isinstance(identity, (bool, list, dict)) or not _is_text(name),
    }
    if any(wrong.values()):
        found.bad_rows += [f"{row.place}: {reason}" for reason, holds in wrong.items() if holds]
        return None
    answers = (gold_text(value, read) for value, read in golds)
    answer = next((answer for answer in answers if answer and _is_text(answer)), None)
    if answer is None:
        found.unreadable_golds.append(name)
        return None
    metadata = {key: value for key in layout.metadata_fields if (value := _first(row, (key,))) is not None}
    return Problem(name, layout.preset.clean(statement), answer, metadata)


def _first(row: Row, names: Sequence[str]) -> Any:
    """The first value among the named fields that is present and not null."""
    for name in names:
        try:
            value = look_up(row.values, name)
        except KeyError:
            continue
        if value is not None:
            return value
    return None


def _what(flag: str, names: Sequence[str]) -> str:
    return f"a field {' or '.join(repr(name) for name in names)} (--data.{flag}_field)"


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(one_line, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
