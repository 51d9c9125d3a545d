"""Makes untrusted text safe to show in a terminal, a log or a message."""

from __future__ import annotations

import logging


def printable(text: str, *, limit: int = 0) -> str:
    """Escape all characters but printable ones and line breaks, as in `\\x1b`.

    This covers terminal control sequences, bidirectional overrides and lone surrogates.

    Args:
        limit: a longer text is truncated to this many characters; 0 is no limit.
    """
    rest = len(text) - limit if limit and len(text) > limit else 0
    shown = text[:limit] if rest else text
    # Most lines are printable as they are, which Python sees far faster than a look at each character.
    escaped = "\n".join(line if line.isprintable() else _escaped(line) for line in shown.split("\n"))
    return f"{escaped} ... ({rest} more characters)" if rest else escaped


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def one_line(text: str, *, limit: int = 60) -> str:
    """`printable` on one line, for names and ids inside a message."""
    return printable(text, limit=limit).replace("\n", "\\n")


def printable_lines(text: str) -> list[str]:
    """The lines of a message, printable. Only a line break ends a line: text of others may hold other separators."""
    return [printable(line) for line in text.split("\n") if line]


def log_handler() -> logging.Handler:
    """A handler that writes the messages of log records to stderr, printable."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter())
    return handler


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def cause(error: BaseException) -> str:
    """An error of a library as one line: its first line, or two if the first ends in a colon, and its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = one_line(" ".join(lines[: 2 if lines[0].endswith(":") else 1]), limit=300) if lines else ""
    if told and isinstance(error, ValueError | OSError | ImportError):
        return told
    return f"{type(error).__name__}: {told}" if told else type(error).__name__
