"""Where completions end: at a stop token, or at the token that completes a stop string.

    stops = Stops(policy, ("</answer>", "<|im_end|>"))
    stops.ended(tokens, rows, steps, live)      # [B] bool, whether each row's token at its step ends it

A stop that is the name of a special token stands for that token. All other stops are searched for in the completion's
text, across token borders. A table of the vocabulary tells which tokens may complete a stop. Only rows whose new token
is one of them are decoded, so that most steps cost one look-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rloop_lightning.model.policy import Policy

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # decoded from a part of a character's bytes
_FIRST_TOKENS = 16  # that are decoded to look for a stop, before more are


def stop_faults(stop: Sequence[str], tokenizer: Any) -> Iterator[str]:
    """Stops that could never end a completion of this tokenizer, one message each."""
    special = special_tokens(tokenizer)
    for text in stop:
        if text not in special and (inside := next((token for token in special if token in text), None)):
            yield (
                f"--engine.stop {text!r}: {inside} is a special token, and a completion's text has none; give it alone "
                "or leave it out"
            )


class Stops:
    """The ends of a policy's completions. With stop strings, construction decodes the whole vocabulary.

    Args:
        policy: supplies the tokenizer and the model's own stop tokens.
        stop: names of special tokens, and texts.
    """

    def __init__(self, policy: Policy, stop: Sequence[str]) -> None:
        special = special_tokens(policy.tokenizer)
        token_ids = {*policy.stop_token_ids, *(special[text] for text in stop if text in special)}
        self._policy = policy
        self._token_ids = torch.tensor(sorted(token_ids), dtype=torch.int64)
        self._texts = [text for text in stop if text not in special]
        if self._texts:
            self._completing, longest = _completing_tokens(policy, self._texts)
            # At the start of decoded tokens, up to three characters may differ from the whole text's.
            self._reach = max(map(len, self._texts)) + longest + 4

    def to(self, device: torch.device) -> Stops:
        """Look at tokens on this device from now on. Returns itself."""
        self._token_ids = self._token_ids.to(device)
        if self._texts:
            self._completing = self._completing.to(device)
        return self

    def ended(self, tokens: Tensor, rows: Tensor, steps: Tensor, live: Tensor) -> Tensor:
        """Whether each row's token at its step ends its completion, [B] bool.

        Args:
            tokens: [R, T], of which each row's columns up to its step are sampled.
            rows: [B], the rows to look at.
            steps: [B], their steps.
            live: [B] bool; no stop string is searched for in other rows.
        """
        newest = tokens[rows, steps]
        ended = torch.isin(newest, self._token_ids)
        if not self._texts:
            return ended
        candidates = (live & ~ended & self._completing[newest]).nonzero()[:, 0]
        completions = zip(tokens[rows[candidates]].tolist(), steps[candidates].tolist(), strict=True)
        completed = [self._has_stop(completion[: step + 1]) for completion, step in completions]
        ended[candidates] = torch.tensor(completed, dtype=torch.bool, device=ended.device)
        return ended

    def _has_stop(self, completion: list[int]) -> bool:
        """Whether the end of a completion contains a stop string. Earlier tokens have completed none."""
        count = _FIRST_TOKENS
        while True:
            (text,) = self._policy.decode([completion[-count:]])
            if any(stop in text for stop in self._texts):
                return True
            if len(text) >= self._reach or count >= len(completion):
                return False
            count *= 2


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Ids of the special tokens by name."""
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)), **added}


def _completing_tokens(policy: Policy, texts: Sequence[str]) -> tuple[Tensor, int]:
    """Which tokens may complete one of the texts [V] bool, and the length of the longest such token, characters.

    A token completes a text if it contains the text, or begins with an end of it. Tokens that hold a part of a
    character's bytes may complete any text with characters of several bytes.
    """
    ends = tuple({text[start:] for text in texts for start in range(len(text))})
    may_be_incomplete = not all(text.isascii() for text in texts)
    vocabulary = sorted(set(policy.tokenizer.get_vocab().values()))
    # The first of two equal tokens is decoded as at the start of a text, the second as inside one.
    starts, pairs = (policy.decode([[token] * count for token in vocabulary]) for count in (1, 2))
    completing = torch.zeros(policy.model.config.get_text_config().vocab_size, dtype=torch.bool)
    longest = 0
    for token, start, pair in zip(vocabulary, starts, pairs, strict=True):
        inside = pair[len(start) :]
        if (
            inside.startswith(ends)
            or any(text in pair for text in texts)
            or (may_be_incomplete and _INCOMPLETE in pair)
        ):
            completing[token] = True
            longest = max(longest, len(inside))
    return completing, longest
