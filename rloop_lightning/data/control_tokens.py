"""Text of a problem that is spelled like a control token of the tokenizer, such as `<s>`, stays text.

    control = ControlTokens(tokenizer)
    marked = control.marked(texts)             # each such word is replaced by a mark
    prompt = ...                               # rendered from marked.texts
    control.encoded(prompt, marked)            # its tokens
    marked.restored(prompt)                    # its text

Control tokens that the template puts into the prompt stay control tokens. A word that is a token of its own without
being special, as in an extended vocabulary, is no control token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)  # <think> is special in some tokenizers only
_FIRST_MARK = 0xE000  # characters of private use begin here


@dataclass(frozen=True)
class Marked:
    """Texts in which the words that are spelled like control tokens are replaced.

    Args:
        texts: the texts; the n-th such word of all texts is replaced by n between two of `mark`.
        words: the words.
        mark: a character that is in none of the texts.
    """

    texts: tuple[str, ...]
    words: tuple[str, ...]
    mark: str

    def restored(self, text: str) -> str:
        """A text with the words instead of the marks."""
        return self._places.sub(lambda place: self.words[int(place[1])], text) if self.words else text

    @cached_property
    def _places(self) -> re.Pattern[str]:
        return re.compile(f"{self.mark}(\\d+){self.mark}")


class ControlTokens:
    """The control tokens of a tokenizer.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        control = {token.content for token in added if token.special or _MARKUP.fullmatch(token.content)}
        control = {token for token in (*control, *tokenizer.all_special_tokens) if len(token) > 1}
        ordered = sorted(control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if control else None
        self._ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ordered}
        # A word that is in the vocabulary too has one id for both, and unknown characters are `unk_token`'s.
        self._guarded = {self._ids[t] for t in ordered if not t.isalnum() and t != tokenizer.unk_token}
        self._clones: dict[str, tuple[Any, Mapping[int | None, int]]] = {}

    def marked(self, texts: Sequence[str]) -> Marked:
        """The texts with marks instead of the words that are spelled like control tokens."""
        if self._pattern is None or not any(map(self._pattern.search, texts)):
            return Marked(tuple(texts), (), "")
        mark = next(mark for mark in map(chr, range(_FIRST_MARK, 0x110000)) if not any(mark in text for text in texts))
        words: list[str] = []

        def replaced(word: re.Match[str]) -> str:
            words.append(word[0])
            return f"{mark}{len(words) - 1}{mark}"

        return Marked(tuple(self._pattern.sub(replaced, text) for text in texts), tuple(words), mark)

    def encoded(self, prompt: str, marked: Marked) -> tuple[int, ...]:
        """The tokens of a rendered prompt that still has its marks.

        Raises:
            ValueError: the tokenizer can't encode one of the words as text.
        """
        clone, ids = self._clone(marked.mark)
        control = [] if self._pattern is None else self._pattern.findall(prompt)
        expected = sum(self._ids[token] in self._guarded for token in control)
        named = prompt if self._pattern is None else self._pattern.sub(rf"{marked.mark}\g<0>{marked.mark}", prompt)
        found = [ids.get(token, token) for token in clone.encode(marked.restored(named), add_special_tokens=False).ids]
        if sum(token in self._guarded for token in found) != expected:
            raise ValueError(f"the tokenizer can't encode {marked.words[0]!r} as text")
        return tuple(found)

    def _clone(self, mark: str) -> tuple[Any, Mapping[int | None, int]]:
        """The tokenizer with its control tokens spelled between two marks, and the ids that changed by that."""
        if mark not in self._clones:
            from tokenizers import Tokenizer

            backend = getattr(self._tokenizer, "backend_tokenizer", None)
            if backend is None:
                raise ValueError(f"{type(self._tokenizer).__name__} can't encode special tokens as text")
            settings = json.loads(backend.to_str())
            settings |= {"post_processor": None, "truncation": None, "padding": None}
            for token in settings["added_tokens"]:
                if token["content"] in self._ids:
                    token["content"] = f"{mark}{token['content']}{mark}"
            clone = Tokenizer.from_str(json.dumps(settings))
            names = {token["content"] for token in settings["added_tokens"]}
            original = self._tokenizer.convert_tokens_to_ids
            self._clones[mark] = clone, {clone.token_to_id(name): original(name.strip(mark)) for name in names}
        return self._clones[mark]
