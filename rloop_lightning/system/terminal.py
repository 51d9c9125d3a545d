"""Text of others, made safe to show in a terminal, a log or a message."""

from __future__ import annotations


def printable(text: str, *, limit: int = 0) -> str:
    """The text with everything but printable characters and line breaks escaped, as `\\x1b`.

    That covers terminal control sequences, bidirectional overrides and lone surrogates.

    Args:
        limit: characters that are shown of a longer text; 0 shows all.
    """
    rest = len(text) - limit if limit and len(text) > limit else 0
    shown = text[:limit] if rest else text
    escaped = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in shown)
    return f"{escaped} ... ({rest} more characters)" if rest else escaped


def one_line(text: str, *, limit: int = 60) -> str:
    """`printable`, in one line: for names and ids inside a message."""
    return printable(text, limit=limit).replace("\n", "\\n")
