"""Normalises the text of problems, to find the same problem in different spellings."""

from __future__ import annotations

import re
import unicodedata

from rloop_lightning.types import Problem

_DASHES = re.compile("[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
_QUOTING = re.compile(r"[\"'`\u2018-\u201f$\\(){}\[\],;:!?\u00a1\u00bf]")
# A point that ends a sentence and a hyphen that joins words carry no mathematics. In numbers and terms they do.
_POINT = re.compile(r"\.(?!\d)")
_OPERATOR = re.compile(r" ?([-+*/=<>^|]) ?")
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})")


def normalised(text: str) -> str:
    """NFKC without case, without punctuation that carries no mathematics, and without redundant spaces.

    Operators, digits and decimal points stay: `2+3` and `2-3` are two problems.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _QUOTING.sub(" ", _DASHES.sub("-", text))
    text = _HYPHEN.sub(" ", _POINT.sub(" ", text))
    return _OPERATOR.sub(r"\1", " ".join(text.split()))


def normalised_problem(problem: Problem) -> str:
    """The normalised text of a problem and of the turns before it. A system message does not make another problem."""
    turns = [message.text for message in problem.context if message.role != "system"]
    return normalised("\n".join([*turns, problem.prompt]))
