"""Renders problems as prompts.

    render_problems(problems, tokenizer, ...)  by chat template or template string
    rendered(source, tokenizer)                all sets of a source, without the problems that are too long

A problem's text is data: it is never read as a template, and no part of it becomes a special token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from types import MappingProxyType
from typing import Any

from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.chat_template import chat_prompts, chat_template_of, unused_kwargs, with_fixed_date
from rloop_lightning.data.control_tokens import ControlTokens
from rloop_lightning.data.text import normalised_problem
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Message, Problem

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
DEFAULT_TEMPLATE = "Problem:\n{problem}\n\nSolution:\n"
PLACE = "{problem}"
_SHOWN = 5  # problems that a message names


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
        shown = source.render(problems, tokenizer)
        limit = source.max_prompt_tokens
        sets[name] = shown if limit is None else [p for p in shown if token_count(p, tokenizer) <= limit]
        left_out[name] = len(shown) - len(sets[name])
        if not sets[name] and shown:
            wrong.append(f"--data.max_prompt_tokens {limit}: none of the {len(shown)} problems of {name} is that short")
    if wrong:
        raise ValueError("\n".join(wrong))
    return RenderedProblems(sets.pop("train"), sets, left_out, overlap, source.notes())


def token_count(problem: Problem, tokenizer: Any) -> int:
    """Length of a rendered problem's prompt, tokens, encoded as in `Policy.prompt_ids`."""
    ids = problem.prompt_ids
    return len(tokenizer.encode(problem.prompt, add_special_tokens=False) if ids is None else ids)


def overlap_count(train: Sequence[Problem], evaluation: Sequence[Problem]) -> int:
    """Number of an evaluation set's problems that are also in the training set, compared by normalised text."""
    known = {normalised_problem(problem) for problem in train}
    return sum(normalised_problem(problem) in known for problem in evaluation)


def render_problems(
    problems: Sequence[Problem],
    tokenizer: Any,
    *,
    system_prompt: str | None,
    instruction: str,
    template: str | None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    today: date | None = None,
) -> list[Problem]:
    """Problems with their prompts as the policy sees them.

    Args:
        problems: the bare problems.
        tokenizer: supplies the chat template and the special tokens.
        system_prompt: text before everything else instead of the problems' own system messages; empty for none; None
            takes the problems' own.
        instruction: text after each problem; empty for none.
        template: text that contains `{problem}`; None uses the tokenizer's chat template, or `DEFAULT_TEMPLATE` if it
            has none. Nothing else in a template has a meaning, so it may contain `\\boxed{}`.
        chat_template: name of the chat template, if the tokenizer has several.
        chat_template_kwargs: variables of the chat template, besides the messages.
        today: the date that the chat template sees; None is the current one.

    Raises:
        ValueError: the chat template refuses the messages or has no such variable, or none is used; or a prompt lacks
            its problem.
    """
    chat = chat_template_of(tokenizer, chat_template) if template is None else None
    if wrong := list(unused_kwargs(chat, chat_template_kwargs)):
        raise ValueError("\n".join(wrong))
    control = ControlTokens(tokenizer)
    marked = [control.marked([*(turn.text for turn in problem.context), problem.prompt]) for problem in problems]
    conversations = [
        messages_of(problem, found.texts, system_prompt, instruction)
        for problem, found in zip(problems, marked, strict=True)
    ]
    if chat is not None:
        chat, dates = with_fixed_date(chat, today)
        prompts = chat_prompts(conversations, tokenizer, chat, {**dates, **chat_template_kwargs})
    else:
        prompts = _filled(problems, conversations, tokenizer, DEFAULT_TEMPLATE if template is None else template)
    wrong, shown = [], []
    for problem, turns, found, prompt in zip(problems, conversations, marked, prompts, strict=True):
        try:
            _check_complete(turns, prompt)
            ids = control.encoded(prompt, found) if found.words else None
        except ValueError as error:
            wrong.append(f"--data: {one_line(problem.id)}: {error}")
        else:
            shown.append(replace(problem, prompt=found.restored(prompt), prompt_ids=ids))
    if wrong:
        more = [f"--data: {len(wrong) - _SHOWN:,} more problems like these"] if len(wrong) > _SHOWN else []
        raise ValueError("\n".join([*wrong[:_SHOWN], *more]))
    return shown


def messages_of(
    problem: Problem, texts: Sequence[str], system_prompt: str | None, instruction: str
) -> tuple[Message, ...]:
    """The messages that become a prompt. `texts` are those of the problem's context, and its own."""
    *before, text = texts
    context = [replace(turn, text=own) for turn, own in zip(problem.context, before, strict=True)]
    if system_prompt is not None:
        context = [turn for turn in context if turn.role != "system"]
    if system_prompt:
        context.insert(0, Message("system", system_prompt))
    return (*context, Message("user", f"{text}\n\n{instruction}" if instruction else text))


def _filled(
    problems: Sequence[Problem], conversations: Sequence[Sequence[Message]], tokenizer: Any, template: str
) -> list[str]:
    """Prompts by a template string, which has a place for one problem only."""
    turns = [one_line(p.id) for p in problems if any(message.role != "system" for message in p.context)]
    if turns:
        raise ValueError(
            f"--data: {turns[0]}{f' and {len(turns) - 1:,} more problems' if turns[1:] else ''}: earlier turns need a "
            "chat template; take a model that has one, and leave --data.template out"
        )
    before, _, after = template.partition(PLACE)
    own = getattr(tokenizer, "bos_token", None) or ""
    start = own if own and before.startswith(own) else _start_token(tokenizer)
    before = before.removeprefix(own)
    return [
        "".join([start, *(f"{turn.text.removeprefix(own)}\n\n" for turn in system), before, problem.text, after])
        for *system, problem in conversations
    ]


def _check_complete(turns: Sequence[Message], prompt: str) -> None:
    """Check that the prompt contains what the system and the user said, up to white space.

    An assistant's turn may be shortened: templates leave out its thoughts.

    Raises:
        ValueError: it does not.
    """
    squeezed = None
    for turn in turns:
        if turn.role != "assistant" and turn.text.strip() not in prompt:
            squeezed = " ".join(prompt.split()) if squeezed is None else squeezed
            if " ".join(turn.text.split()) not in squeezed:
                what = "the system message" if turn.role == "system" else "the problem"
                raise ValueError(
                    f"the chat template of --policy.model drops or changes {what}; give --data.template"
                    + (", or set --data.system_prompt ''" if turn.role == "system" else "")
                )


def _start_token(tokenizer: Any) -> str:
    """The token that the tokenizer prepends to every text. Chat templates contain it; template strings need not."""
    start = getattr(tokenizer, "bos_token_id", None)
    if start is None or tokenizer.encode("a")[:1] != [start]:
        return ""
    return tokenizer.bos_token
