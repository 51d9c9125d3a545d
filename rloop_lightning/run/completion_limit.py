"""Prompts and the completion length limit against a policy's context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rloop_lightning.engines.base import LONGEST_DEFAULT_COMPLETION, default_completion_limit
from rloop_lightning.model.context import Context
from rloop_lightning.system.terminal import one_line

_SHOWN = 5  # problems that a message lists by name
# Of the policy's context, or of the longest default, whichever is less: a default limit below this share is refused. It
# would cut most completions because of a few long prompts.
_LEAST_SHARE_FOR_COMPLETIONS = 0.25


def too_long_prompts(
    lengths: Sequence[tuple[str, int]], context: Context, limit: int, option: str, model: str
) -> Iterator[str]:
    """An error if some prompts leave too little of a policy's context.

    Args:
        lengths: ids and prompt lengths in tokens.
        context: the policy's.
        limit: the completion length limit, tokens.
        option: the option that sets the limit.
        model: the policy, for the message.
    """
    too_long = [name for name, length in lengths if length + limit > context.tokens]
    if too_long:
        some = ", ".join(map(one_line, too_long[:_SHOWN]))
        left = context.tokens - max(length for _, length in lengths)
        remedies = [f"set {option} to {left} or less"] if left > 0 else []
        if limit < context.tokens:
            remedies.append(f"leave these problems out by --data.max_prompt_tokens {context.tokens - limit}")
        yield (
            f"{len(too_long)} prompts don't fit {model}'s {context} together with {option} {limit}: {some} ...; "
            f"{', or '.join(remedies) or f'lower {option}, and leave out long problems by --data.max_prompt_tokens'}"
        )


def default_limit(lengths: Sequence[tuple[str, int]], context_tokens: int) -> int:
    """The default completion limit, tokens.

    Args:
        lengths: ids and prompt lengths in tokens.
        context_tokens: the policy's context.

    Raises:
        ValueError: the longest prompt leaves too little of the context.
    """
    longest, length = max(lengths, key=lambda problem: problem[1])
    limit = default_completion_limit(context_tokens, length)
    if limit >= _LEAST_SHARE_FOR_COMPLETIONS * min(LONGEST_DEFAULT_COMPLETION, context_tokens):
        return limit
    shorter = f"leave long prompts out by --data.max_prompt_tokens {context_tokens // 2}"
    raise ValueError(
        f"--engine.max_new_tokens: the longest prompt ({one_line(longest)}, {length:,} tokens) leaves "
        f"{max(0, context_tokens - length):,} of the policy's {context_tokens:,} positions for a "
        "completion; " + (f"set it to at most {limit}, or {shorter}" if limit > 0 else shorter)
    )
