"""The longest sequence that a model computes independently of the other rows of a batch.

    context = context_of(model.config.get_text_config())
    context.tokens                      # prompt and completion together
    f"exceeds the model's {context}"    # "... 4096 positions of its original context (longrope ...)"

Some models change how they compute all tokens of a batch once its longest row passes a length. A logprob would then
depend on the other rows, and on whether the tokens were sampled one by one or computed at once. Within the limit they
are ordinary models.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Context:
    """A limit of the length of prompt and completion.

    Args:
        tokens: the limit.
        reason: its reason, for messages.
        counts_columns: whether it holds for all columns of a row together, however many sequences are packed there.
    """

    tokens: int
    reason: str
    counts_columns: bool = False

    def __str__(self) -> str:
        return f"{self.tokens} {self.reason}"


def context_of(config: Any) -> Context:
    """The smallest limit of a text config.

    Raises:
        ValueError: it leaves no room for a token.
    """
    context = min(_limits(config), key=lambda limit: limit.tokens)
    if context.tokens < 1:
        raise ValueError(f"config.json leaves room for {context}; correct that number")
    return context


def _limits(config: Any) -> Iterator[Context]:
    yield Context(getattr(config, "max_position_embeddings", None) or sys.maxsize, "positions")
    for rope in _ropes(config):
        if rope.get("rope_type") == "longrope":
            original = rope["original_max_position_embeddings"]
            yield Context(original, "positions of its original context (longrope rotates longer batches otherwise)")
    if tokens := getattr(config, "index_topk", None):  # DeepSeek sparse attention
        yield Context(tokens, "tokens of sparse attention (index_topk)", counts_columns=True)
    if tokens := getattr(config, "index_block_size", None):  # MiniMax-M3; padding shifts a row's blocks
        yield Context(tokens, "tokens of a block of sparse attention (index_block_size)", counts_columns=True)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The settings of rotary embeddings; some models have one per layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
