"""The problems of a run for an export: their messages, prompts and gold answers, read from the data source again.

A run keeps digests of its problems alone (problem_record.py). What the source gives now is compared with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rloop_lightning.data.base import ProblemSource
from rloop_lightning.run.folder import RunFolder
from rloop_lightning.run.problem_record import changed_training_problems
from rloop_lightning.types import Message


@dataclass(frozen=True)
class ExportProblem:
    """A training problem.

    Args:
        index: its place in the training set, from 0.
        messages: what the policy was told, before a template: system message, earlier turns, and the problem with its
            instruction.
        prompt: the text that the policy saw.
        golds: the gold answers.
    """

    index: int
    messages: tuple[Message, ...]
    prompt: str
    golds: tuple[str, ...]


def export_problems(
    folder: RunFolder, source: ProblemSource, tokenizer: Any, ids: Collection[str]
) -> Mapping[str, ExportProblem]:
    """Problems of the training set by id, in its order.

    Args:
        folder: the run.
        source: the run's problem sets.
        tokenizer: of the run's policy, which renders the prompts.
        ids: the problems.

    Raises:
        ValueError: the source can't be read, or does not give these problems as the run saw them.
    """
    places = {problem.id: place for place, problem in enumerate(source.train())}
    found = [problem for problem in source.train() if problem.id in ids]
    shown = source.render(found, tokenizer)
    if faults := changed_training_problems(folder.problems, found, shown, ids):
        raise ValueError("\n".join(faults))
    return {
        bare.id: ExportProblem(places[bare.id], source.messages(bare), seen.prompt, bare.golds)
        for bare, seen in zip(found, shown, strict=True)
    }
