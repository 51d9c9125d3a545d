"""Words that change the number beside them or say that it isn't the answer: they are no units.

By class: multiples and parts, numbers in words, operations, negations, bases.
"""

from __future__ import annotations

import re

from rloop_lightning.rewards.spelling import words

_UNITS = str.split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = str.split("twenty thirty forty fifty sixty seventy eighty ninety")
NUMBERS = {word: number for number, word in enumerate(_UNITS)}
NUMBERS |= {word: 10 * number for number, word in enumerate(_TENS, start=2)}

# Seconds are a unit of time. Months and lengths end like parts and are none.
PART = (
    r"(?:half|halves|thirds?|quarters?"
    r"|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)tie|hundred|thousand|dozen|[a-z]{0,12}illion|n|umpteen)ths?)"
)
"""Of the words for parts, as a pattern."""
MULTIPLE = (
    r"(?:[a-z]{0,12}illions?|[a-z]{0,12}illiards?|[mb]il|hundreds?|thousands?|dozens?|lakhs?|crores?|myriads?|grosses"
    r"|grand|percents?|per(?:mille?|mil|cent|centage)|promille)"
)
"""Of the words for multiples, as a pattern."""
_PARTS, _MULTIPLES = re.compile(PART), re.compile(MULTIPLE)
_OPERATIONS = words(
    "times plus minus over mod modulo squared cubed factorial doubled tripled quadrupled halved quartered twice thrice "
    "increased decreased reduced raised multiplied divided added subtracted summed negated inverted "
    "rounded truncated power root roots remainder point decimal reciprocal"
)
NEGATIONS = words(
    "not no never non isn't incorrect incorrectly wrong wrongly false untrue invalid impossible except without unless "
    "neither nor rejected discarded excluded extraneous"
)
_BASES = words(
    "binary ternary quaternary quinary octal decimal duodecimal hexadecimal hex vigesimal sexagesimal base modulus"
)


def alters(word: str) -> bool:
    """Whether a word in lower case changes a number beside it."""
    if word in NUMBERS or word in _OPERATIONS or word in NEGATIONS or word in _BASES:
        return True
    return _PARTS.fullmatch(word) is not None or _MULTIPLES.fullmatch(word) is not None


def spelled_number(text: str) -> int | None:
    """The number below a hundred that words say, such as "twenty-five"; None for other words."""
    found = re.findall(r"[a-z]+", text.lower())
    if not found or len(found) > 2 or any(word not in NUMBERS for word in found):
        return None
    first, *rest = (NUMBERS[word] for word in found)
    if rest and not (first >= 20 and 0 < rest[0] < 10):
        return None
    return first + sum(rest)
