"""Prompts by a tokenizer's chat template, and its variables (`--data.chat_template_kwargs`)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from rloop_lightning.system.bounded import LimitError, Limits, bounded
from rloop_lightning.system.terminal import one_line
from rloop_lightning.types import Message

# Rendering a prompt takes about 0.1 ms, compiling a long template 0.1 s.
LIMITS = Limits(cpu_s=5, cpu_s_per_value=0.02, memory_mb=512)
_MOST_ADDED = 100_000  # characters of a template's own in one prompt
_OTHER_TEMPLATE = "take another model, or give --data.template, which replaces it"

_NOW = re.compile(r"""strftime_now\(\s*(['"])((?:(?!\1).){0,100})\1\s*\)""")
_FIXED_NOW = "{%- macro strftime_now(format) -%}{{ fixed_dates[format] }}{%- endmacro %}"

_PROBE = "\N{LEFT CEILING}1 + 1 = ?\N{RIGHT FLOOR}"

# Arguments of `apply_chat_template` that are no variables of a template.
_SET_HERE = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    }
)


def chat_kwargs_faults(given: Any, template: str | None) -> Iterator[str]:
    """Errors in `--data.chat_template_kwargs` that need no tokenizer, one message each."""
    flag = "--data.chat_template_kwargs"
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        yield f"{flag}: expected a mapping such as {{enable_thinking: false}}, got {one_line(repr(given))}"
        return
    if given and template is not None:
        yield f"{flag}: --data.template replaces the chat template; leave one of the two out"
    for name in sorted(_SET_HERE & given.keys()):
        yield f"{flag}: {name} is set by the rendering itself; leave it out"


def chat_template_of(tokenizer: Any, name: str | None = None) -> str | None:
    """The chat template that renders messages, or None if there is none.

    Args:
        tokenizer: of transformers.
        name: which one, if it has several; None is `default`, or the only one.

    Raises:
        ValueError: there is no template of that name, or none is named and none is the default.
    """
    templates = getattr(tokenizer, "chat_template", None) or None
    known = templates if isinstance(templates, dict) else {"default": templates} if templates else {}
    if name is None and (len(known) == 1 or not known):
        return next(iter(known.values()), None)
    chosen = "default" if name is None else name
    if chosen not in known:
        names = ", ".join(map(one_line, known)) or "none"
        wrong = (
            f"--data.chat_template {one_line(name)}"
            if name
            else f"{_named(tokenizer)}: no chat template is the default"
        )
        raise ValueError(f"{wrong}; the tokenizer has {names}; choose by --data.chat_template, or give --data.template")
    return known[chosen]


def unused_kwargs(chat_template: str | None, given: Mapping[str, Any]) -> Iterator[str]:
    """Variables that no template reads. Jinja ignores them without a word."""
    if given and chat_template is None:
        yield "--data.chat_template_kwargs: the tokenizer of --policy.model has no chat template; leave them out"
    elif chat_template is not None:
        for name in given:
            if not re.search(rf"\b{re.escape(name)}\b", chat_template):
                near = difflib.get_close_matches(name, set(re.findall(r"\w+", chat_template)), n=1)
                hint = f"; did you mean {near[0]}?" if near else "; leave it out"
                yield f"--data.chat_template_kwargs: --policy.model's chat template has no variable {name!r}{hint}"


def with_fixed_date(chat_template: str, today: date | None) -> tuple[str, dict[str, Any]]:
    """A chat template whose `strftime_now` tells a fixed date, and the variables that it needs for that.

    transformers passes plain data to templates and no functions. So the template gets the date in every format that it
    asks for, and a macro in front that looks it up. A template that computes its formats is left alone.
    """
    formats = [found[1] for found in _NOW.findall(chat_template)]
    if today is None or len(formats) != chat_template.count("strftime_now("):
        return chat_template, {}
    return _FIXED_NOW + chat_template, {"fixed_dates": {form: today.strftime(form) for form in formats}}


def chat_prompts(
    conversations: Sequence[Sequence[Message]], tokenizer: Any, chat_template: str, kwargs: Mapping[str, Any]
) -> list[str]:
    """Conversations rendered by the chat template up to the start of the reply.

    A template gets the content of a message as text or, if it drops text, as a list of one part of text. It is a
    program of whoever made the model's folder, and is run within limits.

    Raises:
        ValueError: the template refuses the messages, drops them in either form, or exceeds a limit.
    """
    try:
        return bounded(
            lambda: _rendered(conversations, tokenizer, chat_template, kwargs), LIMITS, together=len(conversations) or 1
        )
    except LimitError as error:
        raise ValueError(f"{_named(tokenizer)}: its chat template {error}; {_OTHER_TEMPLATE}") from error


def _rendered(
    conversations: Sequence[Sequence[Message]], tokenizer: Any, chat_template: str, kwargs: Mapping[str, Any]
) -> Iterator[str]:
    as_content: Callable[[str], Any] | None = None
    for turns in conversations:
        as_content = as_content or _content_form(turns, tokenizer, chat_template, kwargs)
        yield _chat_prompt(turns, tokenizer, chat_template, kwargs, as_content)


def _as_text(text: str) -> Any:
    return text


def _as_parts(text: str) -> Any:
    return [{"type": "text", "text": text}]


def _content_form(
    turns: Sequence[Message], tokenizer: Any, chat_template: str, kwargs: Mapping[str, Any]
) -> Callable[[str], Any]:
    """The form of content that the template renders. It is tried on a text that no template has of its own."""
    tried = [*turns[:-1], replace(turns[-1], text=_PROBE)]
    refusals = []
    for form in (_as_text, _as_parts):
        try:
            if _PROBE in _chat_prompt(tried, tokenizer, chat_template, kwargs, form):
                return form
        except ValueError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    raise ValueError(f"{_named(tokenizer)}: its chat template drops the user's message; give --data.template")


def _chat_prompt(
    turns: Sequence[Message],
    tokenizer: Any,
    chat_template: str,
    kwargs: Mapping[str, Any],
    as_content: Callable[[str], Any],
) -> str:
    messages = [{"role": turn.role, "content": as_content(turn.text)} for turn in turns]
    try:
        prompt = tokenizer.apply_chat_template(
            messages, chat_template=chat_template, add_generation_prompt=True, tokenize=False, **kwargs
        )
    except MemoryError:
        raise
    except RecursionError as error:
        raise ValueError(f"{_named(tokenizer)}: its chat template nests too deeply; {_OTHER_TEMPLATE}") from error
    except Exception as error:  # a template may raise anything
        change = "change --data.chat_template_kwargs, " if kwargs else ""
        what = one_line(str(error), limit=300) or type(error).__name__
        raise ValueError(
            f"{_named(tokenizer)}: its chat template refuses the messages: {what}; {change}set --data.system_prompt '' "
            "or give --data.template"
        ) from error
    added = len(prompt) - sum(len(turn.text) for turn in turns)
    if added > _MOST_ADDED:
        raise ValueError(
            f"{_named(tokenizer)}: its chat template adds {added:,} characters to a problem, and {_MOST_ADDED:,} are "
            f"allowed; {_OTHER_TEMPLATE}"
        )
    return prompt


def _named(tokenizer: Any) -> str:
    return f"--policy.model {one_line(str(tokenizer.name_or_path), limit=300)}".rstrip()
