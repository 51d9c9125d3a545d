"""Prompts by a tokenizer's chat template, and its variables (`--data.chat_template_kwargs`)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from rloop_lightning.system.bounded import LimitError, Limits, bounded
from rloop_lightning.system.terminal import one_line

# Rendering a prompt takes about 0.1 ms, compiling a long template 0.1 s.
LIMITS = Limits(cpu_s=5, cpu_s_per_value=0.02, memory_mb=512)
_MOST_ADDED = 100_000  # characters of a template's own in one prompt
_OTHER_TEMPLATE = "take another model, or give --data.template, which replaces it"

_NOW = re.compile(r"""strftime_now\(\s*(['"])((?:(?!\1).){0,100})\1\s*\)""")
_FIXED_NOW = "{%- macro strftime_now(format) -%}{{ fixed_dates[format] }}{%- endmacro %}"

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


def chat_template_of(tokenizer: Any) -> str | None:
    """The chat template that renders messages, or None."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # of several templates, none is the default
        raise ValueError(f"{_named(tokenizer)}: {one_line(str(error), limit=300)}; give --data.template") from error


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
    texts: Sequence[str], tokenizer: Any, system_prompt: str, chat_template: str, kwargs: Mapping[str, Any]
) -> list[str]:
    """Problems as the user's message, each rendered by the chat template up to the start of the reply.

    A chat template is a program of whoever made the model's folder. It is run within limits.

    Raises:
        ValueError: the template refuses the messages, or exceeds a limit.
    """
    try:
        return bounded(
            lambda: (_chat_prompt(text, tokenizer, system_prompt, chat_template, kwargs) for text in texts),
            LIMITS,
            together=len(texts),
        )
    except LimitError as error:
        raise ValueError(f"{_named(tokenizer)}: its chat template {error}; {_OTHER_TEMPLATE}") from error


def _chat_prompt(text: str, tokenizer: Any, system_prompt: str, chat_template: str, kwargs: Mapping[str, Any]) -> str:
    messages = [{"role": "user", "content": text}]
    if system_prompt:
        messages.insert(0, {"role": "system", "content": system_prompt})
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
    added = len(prompt) - len(text) - len(system_prompt)
    if added > _MOST_ADDED:
        raise ValueError(
            f"{_named(tokenizer)}: its chat template adds {added:,} characters to a problem, and {_MOST_ADDED:,} are "
            f"allowed; {_OTHER_TEMPLATE}"
        )
    return prompt


def _named(tokenizer: Any) -> str:
    return f"--policy.model {one_line(str(tokenizer.name_or_path), limit=300)}".rstrip()
