"""A place in a list of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from rloop_lightning.rewards.tokens import Token, UnreadableError

CLOSING = {"(": ")", "[": "]", "{": "}"}


class Cursor:
    """Moves through tokens.

    Args:
        tokens: all tokens of an expression.
    """

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = list(tokens)
        self.position = 0

    @property
    def here(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def ahead(self, offset: int) -> Token | None:
        return self.tokens[self.position + offset] if self.position + offset < len(self.tokens) else None

    def next(self) -> Token:
        token = self.here
        if token is None:
            raise UnreadableError("an expression that is not finished")
        self.position += 1
        return token

    def sees(self, *signs: str) -> bool:
        return self.here is not None and self.here.kind == "sign" and self.here.text in signs

    def takes(self, *signs: str) -> bool:
        found = self.sees(*signs)
        self.position += found
        return found

    def expect(self, sign: str) -> None:
        if not self.takes(sign):
            raise UnreadableError(f"a missing {sign!r}")

    def group_text(self) -> str:
        """The text of the next token or bracket, without spaces: an index is part of a name."""
        token = self.next()
        if token.text not in CLOSING or token.kind != "sign":
            return token.text
        parts: list[str] = []
        depth = 1
        while depth:
            part = self.next()
            depth += (part.kind == "sign") * ((part.text in "([{") - (part.text in ")]}"))
            parts.append(part.text)
        return "".join(parts[:-1]).replace("infty", r"\infty")
