"""What is done with the text of problems, which is data of others and may hold anything.

normalised    two statements of one problem, in other spelling, are the same text
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
