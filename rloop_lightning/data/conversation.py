"""Reads problems that are kept as a list of messages, as chat data sets and verl do.

    read = read_conversation(row["prompt"])
    read.problem, read.context

The last user message is the problem. What comes before it, system messages included, is its context. What comes after
it is a reply and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rloop_lightning.types import Message, Role

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
_KEYS = (("role", "content"), ("from", "value"))  # the second pair as in ShareGPT


@dataclass(frozen=True)
class Conversation:
    """A problem in a conversation.

    Args:
        problem: the last user message.
        context: the messages before it.
        replies: number of messages after it, which are left out.
    """

    problem: str
    context: tuple[Message, ...] = ()
    replies: int = 0


def as_messages(value: Any) -> Sequence[Any] | None:
    """The messages in a field's value, which may be JSON text; None if the value is something else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return None
        return parsed if isinstance(parsed, list) and parsed and all(map(_is_message, parsed)) else None
    return value if isinstance(value, (list, tuple)) else None


def read_conversation(messages: Sequence[Any]) -> Conversation:
    """The problem in a list of messages.

    Raises:
        ValueError: a message has no known role or is no text, or none is the user's.
    """
    read = [_read(number, message) for number, message in enumerate(messages)]
    last = max((number for number, message in enumerate(read) if message.role == "user"), default=None)
    if last is None:
        raise ValueError("no message has the role user")
    context = tuple(message for message in read[:last] if message.text.strip())
    return Conversation(read[last].text, context, len(read) - 1 - last)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and any(keys <= value.keys() for keys in map(set, _KEYS))


def _read(number: int, message: Any) -> Message:
    where = f"message {number + 1}"
    if not _is_message(message):
        raise ValueError(f"{where} must have a role and a content")
    role, content = next((message[a], message[b]) for a, b in _KEYS if {a, b} <= message.keys())
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"{where} has the role {str(role)!r}; known are {', '.join(_ROLES)}")
    return Message(_ROLES[role], _text(where, content))


def _text(where: str, content: Any) -> str:
    """The text of a content: text, or a list of parts such as `{"type": "text", "text": "..."}`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"the content of {where} must be text, got {type(content).__name__}")
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"the content of {where} has a part that is not text ({str(kind)!r})")
    return "".join(part["text"] for part in content)
