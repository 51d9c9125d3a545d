"""The tokens that end a completion of a model: its EOS tokens, and the end of an assistant turn in its chat template.

    stop_token_ids(generation_config.eos_token_id, tokenizer)       # frozenset({151643, 151645})

A base model's tokenizer often has a chat template, and an EOS token for the end of a document. Completions that follow
the template then end with the template's own token.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from rloop_lightning.system.bounded import LimitError, Limits, bounded
from rloop_lightning.system.terminal import one_line

_log = logging.getLogger(__name__)

_REPLY = "rloop-reply"  # a word that no template contains
_LONGEST_END = 10_000  # characters
_LIMITS = Limits(cpu_s=5, memory_mb=512)


def stop_token_ids(eos_token_id: int | Iterable[int] | None, tokenizer: Any) -> frozenset[int]:
    """All tokens that end a completion.

    Args:
        eos_token_id: the EOS token or tokens of the model's generation config.
        tokenizer: supplies its own EOS token and the chat template.

    Raises:
        ValueError: rendering the chat template exceeds a limit.
    """
    candidates = [*as_ids(eos_token_id), *as_ids(tokenizer.eos_token_id), *as_ids(end_of_turn_id(tokenizer))]
    return frozenset(candidates)


def as_ids(eos_token_id: int | Iterable[int] | None) -> list[int]:
    """One token, several or none, as a list."""
    if eos_token_id is None:
        return []
    return list(eos_token_id) if isinstance(eos_token_id, Iterable) else [eos_token_id]


def end_of_turn_id(tokenizer: Any) -> int | None:
    """The token that the chat template puts after an assistant's last message, such as `<|im_end|>`, or None."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        after: str | None = bounded(lambda: [_after_reply(tokenizer)], _LIMITS)[0]
    except LimitError as error:
        raise ValueError(
            f"its chat template {error}; take another model, or delete the template (chat_template.jinja, or in "
            "tokenizer_config.json) and give --data.template"
        ) from error
    if after is None:
        return None
    after = after.lstrip()
    found = [(token.content, number) for number, token in tokenizer.added_tokens_decoder.items()]
    ends = [(len(content), number) for content, number in found if content and after.startswith(content)]
    return max(ends)[1] if ends else None


def _after_reply(tokenizer: Any) -> str | None:
    """What the chat template puts after an assistant's last message; None if it does not contain the message."""
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _REPLY}]
    try:
        _, reply, after = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(_REPLY)
    except MemoryError:
        raise
    except Exception:  # a template may raise anything; rendering the problems reports it
        return None
    return after[:_LONGEST_END] if reply else None


def ends_of_completions(model: Any, tokenizer: Any) -> frozenset[int]:
    """All tokens that end a completion. The saved model's generation config names them, too.

    Raises:
        ValueError: there is none, or rendering the chat template exceeds a limit.
    """
    configured, end = model.generation_config.eos_token_id, end_of_turn_id(tokenizer)
    found = frozenset([*as_ids(configured), *as_ids(tokenizer.eos_token_id), *as_ids(end)])
    if not found:
        raise ValueError("neither the tokenizer nor generation_config.json names an EOS token")
    if end is not None and end not in {tokenizer.eos_token_id, *as_ids(configured)}:
        model.generation_config.eos_token_id = sorted(found)
        name = one_line(tokenizer.convert_ids_to_tokens(end))
        _log.info(f"completions also end at {name}, as the chat template's turns do")
    return found
