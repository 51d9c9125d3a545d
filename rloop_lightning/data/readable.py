"""Problem sets without the problems whose gold answer the reward can't read.

readable(source, reward.unusable, flag)      the source without these problems, if the user wants that
refusals(faults, flag, skips)                otherwise, the error messages
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rloop_lightning.data.base import ProblemSource
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Problem

_SHOWN = 5  # problems that a message names

Unusable = Callable[[Sequence[Problem]], Mapping[str, str]]
"""Returns, by problem id, why a reward can't use the problem."""


class ReadableProblems(ProblemSource):
    """The sets of a source without some problems.

    Args:
        source: the source; everything else is delegated to it.
        left_out: by set, the ids of the problems to leave out.
    """

    def __init__(self, source: ProblemSource, left_out: Mapping[str, Mapping[str, str]]) -> None:
        self._source = source
        self._left_out = left_out
        self.reward = source.reward
        self.max_prompt_tokens = source.max_prompt_tokens

    def train(self) -> Sequence[Problem]:
        return self._kept("train", self._source.train())

    def evaluation(self) -> Mapping[str, Sequence[Problem]]:
        return {name: self._kept(name, problems) for name, problems in self._source.evaluation().items()}

    def render(self, problems: Sequence[Problem], tokenizer: Any) -> list[Problem]:
        return self._source.render(problems, tokenizer)

    def notes(self) -> list[str]:
        said = [
            f"{name}: left out {_some(list(ids))}, whose gold answers the reward can't read"
            for name, ids in self._left_out.items()
            if ids
        ]
        return [*self._source.notes(), *said]

    def _kept(self, name: str, problems: Sequence[Problem]) -> Sequence[Problem]:
        return tuple(problem for problem in problems if problem.id not in self._left_out[name])


def readable(source: ProblemSource, unusable: Unusable, flag: str) -> tuple[ProblemSource, list[str]]:
    """The source and its faults. If the user wants to skip unreadable problems, the source comes without them.

    Args:
        source: the problem sets.
        unusable: the reward's check.
        flag: the reward's name in messages.
    """
    sets = {"train": source.train(), **source.evaluation()}
    faults = {name: unusable(problems) for name, problems in sets.items()}
    if not any(faults.values()):
        return source, []
    if not source.skip_unreadable:
        return source, refusals(faults, flag, source.skip_unreadable)
    empty = [name for name, problems in sets.items() if problems and len(faults[name]) == len(problems)]
    wrong = [f"{flag} can't read the gold answer of any problem of {one_line(name)}" for name in empty]
    return ReadableProblems(source, faults), wrong


def refusals(
    faults: Mapping[str, Mapping[str, str]], flag: str, skips: bool | None, *, shown: int = _SHOWN
) -> list[str]:
    """Error messages for problems that the reward can't read, with advice.

    Args:
        faults: by set and problem id, the fault.
        flag: the reward's name in messages.
        skips: the source's `skip_unreadable`.
        shown: number of problems that are named per set.
    """
    lines = []
    for name, found in faults.items():
        where = f"{flag}: {one_line(name)}:"
        lines += [f"{where} {one_line(id)}: {one_line(why, limit=300)}" for id, why in list(found.items())[:shown]]
        if len(found) > shown:
            lines.append(f"{where} {len(found) - shown:,} more messages like these")
    option = "" if skips is None else ", or skip them with --data.skip_unreadable true"
    return [*lines, f"{flag} can't read these gold answers; fix them{option}"] if lines else []


def _some(ids: Sequence[str]) -> str:
    count = f"{len(ids):,} problem{'' if len(ids) == 1 else 's'}"
    return f"{count} ({', '.join(map(one_line, ids[:_SHOWN]))}{' ...' if len(ids) > _SHOWN else ''})"
