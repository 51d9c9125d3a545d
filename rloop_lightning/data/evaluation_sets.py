"""Evaluation sets without a training set, for `rloop-eval`.

EvaluationSets(["test.jsonl", "openai/gsm8k:main"])     sets `test` and `gsm8k`
SelectedSets(source, ["test"])                          some evaluation sets of another source
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.read import Origin, ReadProblems
from rloop_lightning.types import Message, Problem


class EvaluationSets(ReadProblems):
    """Problems in files or on the hub, to evaluate on. A row holds a problem and a gold answer.

    Args:
        sets: files or hub names (NAME[@REVISION][:CONFIG[:SPLIT]]): one, a list, or `{name: where}`. `--data SET ...`
            is short for a list.
    """

    _eval_flag, _eval_field = "--data", "--data.sets"

    def __init__(self, sets: dict[str, str] | list[str] | str, **kwargs: Any) -> None:
        if not sets:
            raise ValueError("--data: give at least one set")
        super().__init__(eval=sets, validation_size=0, **kwargs)

    def origin(self, wrong: list[str]) -> Origin | None:
        return None


class SelectedSets(ProblemSource):
    """Some evaluation sets of a source, and no training set.

    Args:
        source: the source; everything else is delegated to it.
        names: the sets, in order.
    """

    def __init__(self, source: ProblemSource, names: Sequence[str]) -> None:
        self._source = source
        self._names = names
        self.reward = source.reward
        self.max_prompt_tokens = source.max_prompt_tokens
        self.skip_unreadable = source.skip_unreadable

    def train(self) -> Sequence[Problem]:
        return ()

    def evaluation(self) -> Mapping[str, Sequence[Problem]]:
        found = self._source.evaluation()
        return {name: found[name] for name in self._names}

    def notes(self) -> list[str]:
        return [note for note in self._source.notes() if note.partition(":")[0] in self._names]

    def render(self, problems: Sequence[Problem], tokenizer: Any) -> list[Problem]:
        return self._source.render(problems, tokenizer)

    def messages(self, problem: Problem) -> tuple[Message, ...]:
        return self._source.messages(problem)
