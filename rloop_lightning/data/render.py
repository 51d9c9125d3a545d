"""Renders problems as prompts.

    prompt_texts(problems, tokenizer, ...)     by chat template or template string
    rendered(source, tokenizer)                all sets of a source, without the problems that are too long

A problem's text is data: it is never read as a template, and no part of it becomes a special token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from types import MappingProxyType
from typing import Any

from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.chat_template import chat_prompts, chat_template_of, unused_kwargs, with_fixed_date
from rloop_lightning.data.text import normalised
from rloop_lightning.types import Problem

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
DEFAULT_TEMPLATE = "Problem:\n{problem}\n\nSolution:\n"
PLACE = "{problem}"


class RenderedProblems(ProblemSource):
    """Problem sets with their final prompts, as the policy sees them.

    Args:
        train: the training set.
        evaluation: the evaluation sets.
        left_out: by set, the number of problems that exceeded the length limit.
        overlap: by evaluation set, the number of its problems that are also in the training set.
        notes: the source's notes.
    """

    def __init__(
        self,
        train: Sequence[Problem],
        evaluation: Mapping[str, Sequence[Problem]],
        left_out: Mapping[str, int],
        overlap: Mapping[str, int],
        notes: Sequence[str],
    ) -> None:
        self._train = train
        self._evaluation = evaluation
        self._notes = notes
        self.left_out = left_out
        self.overlap = overlap

    def train(self) -> Sequence[Problem]:
        return self._train

    def evaluation(self) -> Mapping[str, Sequence[Problem]]:
        return self._evaluation

    def notes(self) -> list[str]:
        sets = {"train": self._train, **self._evaluation}
        return [*self._notes, "problems: " + "; ".join(self._describe(name, found) for name, found in sets.items())]

    def _describe(self, name: str, problems: Sequence[Problem]) -> str:
        said = f"{name} {len(problems):,}"
        if self.left_out.get(name):
            said += f", {self.left_out[name]:,} left out, longer than --data.max_prompt_tokens"
        if name in self.overlap:
            said += f", {self.overlap[name]:,} also in train"
        return said


def rendered(source: ProblemSource, tokenizer: Any) -> RenderedProblems:
    """Render all sets of a source as the policy will see them.

    Raises:
        ValueError: the tokenizer's chat template refuses the messages, or a set has no problem within the length limit.
    """
    if isinstance(source, RenderedProblems):
        return source
    overlap = {name: overlap_count(source.train(), problems) for name, problems in source.evaluation().items()}
    sets: dict[str, Sequence[Problem]] = {}
    left_out: dict[str, int] = {}
    wrong = []
    for name, problems in {"train": source.train(), **source.evaluation()}.items():
        prompts = source.render(problems, tokenizer)
        shown = [replace(problem, prompt=prompt) for problem, prompt in zip(problems, prompts, strict=True)]
        limit = source.max_prompt_tokens
        sets[name] = shown if limit is None else [p for p in shown if token_count(p.prompt, tokenizer) <= limit]
        left_out[name] = len(shown) - len(sets[name])
        if not sets[name] and shown:
            wrong.append(f"--data.max_prompt_tokens {limit}: none of the {len(shown)} problems of {name} is that short")
    if wrong:
        raise ValueError("\n".join(wrong))
    return RenderedProblems(sets.pop("train"), sets, left_out, overlap, source.notes())


def token_count(prompt: str, tokenizer: Any) -> int:
    """Length of a rendered prompt, tokens, encoded as in `Policy.encode`."""
    return len(tokenizer.encode(prompt, add_special_tokens=False))


def overlap_count(train: Sequence[Problem], evaluation: Sequence[Problem]) -> int:
    """Number of an evaluation set's problems that are also in the training set, compared by normalised text."""
    known = {normalised(problem.prompt) for problem in train}
    return sum(normalised(problem.prompt) in known for problem in evaluation)


def prompt_texts(
    statements: Sequence[str],
    tokenizer: Any,
    *,
    system_prompt: str,
    instruction: str,
    template: str | None,
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    today: date | None = None,
) -> list[str]:
    """Render problem statements as prompts.

    Args:
        statements: the texts of the problems.
        tokenizer: supplies the chat template and the special tokens.
        system_prompt: text before everything else; empty for none.
        instruction: text after each statement; empty for none.
        template: text that contains `{problem}`; None uses the tokenizer's chat template, or `DEFAULT_TEMPLATE` if it
            has none. Nothing else in a template has a meaning, so it may contain `\\boxed{}`.
        chat_template_kwargs: variables of the chat template, besides the messages.
        today: the date that the chat template sees; None is the current one.

    Raises:
        ValueError: the chat template refuses the messages or has no such variable, or none is used.
    """
    chat_template = chat_template_of(tokenizer) if template is None else None
    if wrong := list(unused_kwargs(chat_template, chat_template_kwargs)):
        raise ValueError("\n".join(wrong))
    special = _special_tokens(tokenizer)
    said = [_without_special_tokens(statement, special) for statement in statements]
    if instruction:
        said = [f"{text}\n\n{instruction}" for text in said]
    if chat_template is not None:
        chat_template, dates = with_fixed_date(chat_template, today)
        variables = {**dates, **chat_template_kwargs}
        return chat_prompts(said, tokenizer, system_prompt, chat_template, variables)
    before, _, after = (DEFAULT_TEMPLATE if template is None else template).partition(PLACE)
    if system_prompt:
        before = f"{system_prompt}\n\n{before}"
    start = _start_token(tokenizer)
    return [f"{start}{before}{text}{after}" for text in said]


def _start_token(tokenizer: Any) -> str:
    """The token that the tokenizer prepends to every text. Chat templates contain it; template strings don't."""
    start = getattr(tokenizer, "bos_token_id", None)
    if start is None or tokenizer.encode("a")[:1] != [start]:
        return ""
    return tokenizer.bos_token


def _special_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern for everything that the tokenizer would read as a special token."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    special = {token for token in (*added, *tokenizer.all_special_tokens) if len(token) > 1}
    if not special:
        return None
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))


def _without_special_tokens(text: str, special: re.Pattern[str] | None) -> str:
    """Insert a space into everything that would become a special token, which could end the user's turn."""
    return text if special is None else special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
