"""What is done with the text of problems, which is data of others and may hold anything.

normalised    two statements of one problem, in other spelling, are the same text
printable     safe to show in a terminal, a log or a message
"""

from __future__ import annotations

import re
import unicodedata

_DASHES = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
_QUOTING = re.compile(r"[\"'`\u2018-\u201f$\\(){}\[\],;:!?\u00a1\u00bf]")
# A point ends a sentence and a hyphen joins words; inside a number and between terms they are mathematics.
_POINT = re.compile(r"\.(?!\d)")
_OPERATOR = re.compile(r" ?([-+*/=<>^|]) ?")
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})")


def normalised(text: str) -> str:
    """NFKC, without case, punctuation that carries no mathematics, and needless spaces.

    Operators, digits and decimal points stay: `2+3` and `2-3` are two problems.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _QUOTING.sub(" ", _DASHES.sub("-", text))
    text = _HYPHEN.sub(" ", _POINT.sub(" ", text))
    return _OPERATOR.sub(r"\1", " ".join(text.split()))


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
