"""Turns rows into problems and collects all faults, in one pass.

found = read_set("train", rows, layout)
found.problems, found.faults(), found.unreadable_golds
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rloop_lightning.data.conversation import Conversation, as_messages, read_conversation
from rloop_lightning.data.golds import Golds, read_golds
from rloop_lightning.data.presets import Extract, Lists, Preset, any_gold, look_up
from rloop_lightning.data.rows import BadRow, Row
from rloop_lightning.data.text import normalised_problem
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Problem

_SHOWN = 5  # places or ids that a message names

_INSIDE = "--data.problem_field can name a nested field, such as extra_info.question"
_MESSAGE = re.compile(r"((.+)\[\d+\])\.(?:content|value)")


@dataclass(frozen=True)
class Layout:
    """The layout of a set: a preset, and the fields that the user sets instead.

    Args:
        metadata_fields: fields that are kept in `Problem.metadata` for the reward.
        answer_lists: what a list of gold answers is; None takes what the preset says.
        skip_unreadable: skip a problem whose gold answer can't be read, instead of refusing the set.
    """

    preset: Preset
    problem_field: str | None = None
    answer_field: str | None = None
    id_field: str | None = None
    metadata_fields: tuple[str, ...] = ()
    answer_lists: Lists | None = None
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
    def lists(self) -> Lists | None:
        return self.answer_lists or self.preset.lists

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
        replies: number of rows whose conversation goes on after the problem; what comes after it was left out.
        lists: number of gold answers that are lists of several.
        unsaid_lists: ids of the problems whose gold answer is a list of which nobody said what it is.
        lists_as: what such a list is; None if nobody said.
        bad_rows: place and reason, as one text, of each row that can't be read or holds no text.
        missing: places of the rows that lack a field, by field.
        unreadable_golds: by id of the problems whose gold answer can't be read, why, if the field shows it.
        duplicate_ids: ids of several problems.
        skips_unreadable: whether the user asked to skip problems with unreadable gold answers.
        fields: the fields of the first row.
    """

    name: str
    source: str
    problems: list[Problem] = field(default_factory=list)
    rows: int = 0
    repeats: int = 0
    replies: int = 0
    lists: int = 0
    unsaid_lists: list[str] = field(default_factory=list)
    lists_as: Lists | None = None
    bad_rows: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    unreadable_golds: dict[str, str] = field(default_factory=dict)
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
                f"no gold answer can be read for {_some(list(self.unreadable_golds))}; fix them, choose another "
                "--data.answer_field or --data.preset, or skip them with --data.skip_unreadable true"
            )
            reasons = [f"{name} has {why}" for name, why in self.unreadable_golds.items() if why]
            if reasons:
                yield f"unreadable gold answers: {_some(reasons)}"
            if self.unsaid_lists:
                yield (
                    f"{_some(self.unsaid_lists)}: set --data.answer_lists alternatives if each answer of a list is "
                    "right, or parts if all of them are needed"
                )
        if not self.rows:
            yield "the set is empty"
        elif not self.problems and not any((self.bad_rows, self.missing)) and self.skips_unreadable:
            yield "the set is empty: no problem has a readable gold answer"

    def repeats_one_problem(self) -> str | None:
        """The fault of a problem field that holds an instruction, the same in each row, instead of the problems."""
        if len({problem.answer for problem in self.problems}) < 2:
            return None
        first = normalised_problem(self.problems[0])
        if any(normalised_problem(problem) != first for problem in self.problems):
            return None
        text = one_line(self.problems[0].prompt, limit=80)
        return (
            f"{one_line(self.source, limit=200)}: all {len(self.problems):,} problems have the same text, {text!r}, "
            "and different gold answers; choose another --data.problem_field"
        )


def read_set(name: str, source: str, rows: Iterable[Row | BadRow], layout: Layout) -> ProblemSet:
    """Read all problems of a set. Bad rows don't raise: see `ProblemSet.faults`."""
    found = ProblemSet(name, source, lists_as=layout.lists, skips_unreadable=layout.skip_unreadable)
    seen: dict[str, Problem] = {}
    for row in rows:
        found.rows += 1
        if isinstance(row, BadRow):
            found.bad_rows.append(": ".join(filter(None, [row.place, one_line(row.reason, limit=500)])))
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
    values = [(value, read) for name, read in layout.answers.items() if (value := _first(row, (name,))) is not None]
    is_null = not values and any(name in row.values for name in layout.answers)
    wanted = {
        "problem": (statement is not None, layout.problem_fields),
        "answer": (bool(values) or is_null, tuple(layout.answers)),
    }
    absent = [_what(flag, names) for flag, (there, names) in wanted.items() if not there]
    identity = _identity(_first(row, layout.id_fields))
    if identity is None and layout.id_field is not None:
        absent.append(_what("id", layout.id_fields))
    for what in absent:
        found.missing.setdefault(what, []).append(row.place)
    if absent:
        return None
    try:
        conversation = _conversation(statement, row, layout)
    except ValueError as error:
        found.bad_rows.append(f"{row.place}: {one_line(str(error), limit=300)}")
        return None
    name = row.place if identity is None else str(identity)
    problem = layout.preset.clean(conversation.problem)
    texts = [problem, *(message.text for message in conversation.context)]
    wrong = {
        "the problem is empty": not problem.strip(),
        "the problem is not valid Unicode: it contains lone surrogates": not all(map(_is_text, texts)),
        "the id must be text or an integer": isinstance(identity, (bool, float, list, dict)) or not _is_text(name),
        "the id is empty": not name.strip(),
    }
    if any(wrong.values()):
        found.bad_rows += [f"{row.place}: {reason}" for reason, holds in wrong.items() if holds]
        return None
    golds = _golds(values, layout)
    if not golds.texts:
        found.unreadable_golds[name] = "null" if is_null else golds.fault
        if golds.listed:
            found.unsaid_lists.append(name)
        return None
    found.replies += conversation.replies > 0
    found.lists += golds.listed
    metadata = {key: value for key in layout.metadata_fields if (value := _first(row, (key,))) is not None}
    answer, *alternatives = golds.texts
    return Problem(name, problem, answer, metadata, tuple(alternatives), conversation.context)


def _identity(value: Any) -> Any:
    """An id's value. pandas makes floats of a column of integers in which some are missing, and NaN of those."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None if value != value else value


def _conversation(value: Any, row: Row, layout: Layout) -> Conversation:
    """The problem in a field's value and the messages before it.

    Raises:
        ValueError: the value is no text and no list of messages, or it is another message than the user's.
    """
    message = _MESSAGE.fullmatch(layout.problem_field or "")
    role = _first(row, (f"{message[1]}.role", f"{message[1]}.from")) if message else None
    if message and role not in (None, "user", "human"):
        raise ValueError(
            f"{message[1]} is a message with the role {role}, not the problem; name the whole list by "
            f"--data.problem_field {message[2]}"
        )
    messages = as_messages(value)
    if messages is not None:
        return read_conversation(messages)
    if not isinstance(value, str):
        raise ValueError(f"the problem must be text, got {type(value).__name__}; {_INSIDE}")
    return Conversation(value)


def _golds(values: Sequence[tuple[Any, Extract]], layout: Layout) -> Golds:
    """The gold answers of the first field that has any."""
    read = [read_golds(value, extract, layout.lists) for value, extract in values]
    sound = (golds for golds in read if golds.texts and all(map(_is_text, golds.texts)))
    return next(sound, None) or next((golds for golds in read if golds.fault), Golds(()))


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
