"""What stands beside a number of a sentence: the mathematics that it is part of, and words that make it another one.

    whole_number("So there are 2^10 ways.", 16, 18)       # "2^10"
    whole_number("So they are 10 million.", 12, 14)       # None

The words are classes, as in altering.py: parts, multiples, operations, negations.
"""

from __future__ import annotations

import re

from rloop_lightning.rewards.altering import MULTIPLE, NUMBERS, PART
from rloop_lightning.rewards.cursor import CLOSING
from rloop_lightning.rewards.units import is_unit_word

_BESIDE = 60  # characters beside a number that can alter it
_OPERATORS = r"*/^+<>\u2264\u2265=\u00d7\u00b7\u00f7\u221a"
_MINUS = r"\-\u2212\u2013"
# The mathematics around a number, such as 2√5 in "2√5 meters".
_RUN = re.compile(
    r"(?:[\d.,:%+\-\u2212\u2013*/^=\u00d7\u00b7\u00f7√π∞!|<>≤≥°$€£¥()\[\]{}\s]|[¼-¾⅐-⅞]|\\[a-zA-Z]+"
    r"|(?<![a-zA-Z])(?:sqrt|pi|sin|cos|tan|log|ln|exp|percent|pct)(?![a-zA-Z])|(?<![a-zA-Z])[a-zA-Z](?=\s?=)"
    r"|(?<=\d\s)x(?=\s\d))+"
)
# A part of it that is one formula: it has spaces beside operators only.
_FORMULA = re.compile(
    rf"(?:\S|(?<=[{_OPERATORS}])\s{{1,3}}|(?<![.,;:])\s{{1,3}}(?=[{_OPERATORS}](?!\|))|\s{{1,3}}(?=[{_MINUS}]\s+[\d(])"
    rf"|(?<=\s[{_MINUS}])\s{{1,3}}(?=[\d(])|\s(?=x\s\d)|(?<=\sx)\s(?=\d))+"
)
_TIMES = re.compile(r"(?<=\d)\s?x\s?(?=\d)")  # 3 x 10^8
_SENTENCES = re.compile(r"[.!?]\s")
_QUESTION = re.compile(r"\b(?:how|what|which|who|where|find|determine)\b", re.IGNORECASE)
_ASKED = re.compile(r"[^.!?\u3002\n]*[?\uff1f]")
_LAYOUT = " \n\t,.;:()[]{}$€£¥*_|!"  # around a number, no part of it
_ENDS_OPEN = re.compile(rf"[{_OPERATORS}(\[{{]\s*$")
_VARIABLE = re.compile(r"\s*[a-zA-Z](?![a-zA-Z'])")
_LETTERS_BEHIND = re.compile(r"[a-zA-Z]+")
_ORDINALS = ("st", "nd", "rd", "th")
_UNITS_OF_ONE_LETTER = "msghtl"

_DIGITS = "|".join(word for word, number in NUMBERS.items() if number < 10)
_OPERATIONS = (
    r"times|plus|minus|over|mod(?:ulo)?|divided|multiplied|raised|choose|remainder|doubled|tripled|halved|squared|cubed"
    r"|factorial|octal|binary|hexadecimal|base|if|unless|to\s+the\s+(?:power|[a-z]+(?:th|nd|rd))"
    r"|(?:more|less|fewer|greater|larger|smaller|higher|lower)\s+than"
)
_ALTERED_BEHIND = re.compile(
    rf"\s*\(?(?:(?:[a-z]+ty[- ])?{PART}|{MULTIPLE}|{_OPERATIONS})\b"
    rf"|\s*and\s+(?:an?|{_DIGITS})[- ]{PART}\b|\s*point\s+(?:{_DIGITS}|\d)"
    r"|\s*(?:out\s+)?of\s+(?:the\s+|every\s+)?\d|\s*in\s+(?:every\s+)?\d+\s*(?:[.,;)]|$)"
    r"|\s*(?:[a-z]+\s*)?,?\s*\b(?:and|or|to)\s+(?:[a-z]\s*=\s*)?[-$]?\d"
    r"|-(?:digit|fold|sided)|\s+or\s+so\b|\s*(?:is|are|was)\s+(?:not|wrong|incorrect|impossible|excluded|ruled|too)\b"
    r"|\s*(?:hours?|minutes?|days?|weeks?|months?|years?|feet|foot|ft|yards?|pounds?|lbs?|dollars?)\s+\d",
    re.IGNORECASE,
)
_ALTERED_BEFORE = re.compile(
    r"(?:[\u2260]|\b(?:negative|minus|plus|times|(?:other|different|apart)\s+(?:than|from)|besides"
    r"|unequal\s+to|(?:every(?:thing)?|all|any(?:thing)?)\s+but|divisible\s+by|exceeds?|exceeding|over|under|rule\s+out"
    r"|(?:theorem|lemma|equation|problem|question|step|case|part|figure"
    r"|table|exercise|example|section)\s*\(?|(?:divided|multiplied)\s+by|choose|except|never|anything\s+but|twice|double|triple"
    r"|(?:not|cannot|can't|won't|isn't|aren't|doesn't|couldn't|shouldn't)(?:\s+(?:be|equal(?:\s+to)?|exactly))?"
    r"|(?:half|thirds?|quarters?|tenths?|roots?|squares?|cubes?|multiples?|fractions?|percent(?:age)?|reciprocal|inverse"
    r"|opposite|factors?|divisors?|powers?|factorial)\s+of)"
    r"|\d\s*(?:,|,?\s*(?:and|or|to))(?:\s*[a-z](?:_?\d)?\s*=)?)\s*$",
    re.IGNORECASE,
)
# Behind "the answer is", they leave the number open. "We need at least 5 coins" may state the least number.
_BOUNDED = re.compile(
    r"\b(?:at\s+(?:least|most)|(?:greater|less|more|fewer|larger|smaller|higher|lower)\s+than(?:\s+or\s+equal\s+to)?)\s*$",
    re.IGNORECASE,
)


def first_number(text: str, start: int) -> str:
    """The mathematics around the first number of an answer's sentence, behind its last `=`; the text if words alter it.

    Args:
        text: the sentence.
        start: where the number begins.
    """
    run = _run(text, start)
    behind = run.group().rindex("=") + 1 if "=" in run.group() else 0
    part = run.group()[behind:]
    answer = part.strip(" \n\t,.;:").rstrip(" +-*/^=([{<,.:\u2212\u2013").replace("$", "").strip()
    if answer[:1] in CLOSING and answer.count(answer[0]) > answer.count(CLOSING[answer[0]]):
        answer = answer[1:]  # (5 apples)
    start = run.start() + behind + len(part) - len(part.lstrip())
    if (
        not any(map(str.isdigit, answer))
        or is_altered(text, start, start + len(part.strip()))
        or _BOUNDED.search(text[max(0, start - _BESIDE) : start])
        or _goes_on(part, text[run.end() :])
    ):
        return text
    return _TIMES.sub("\u00d7", answer)


def whole_number(text: str, start: int, end: int) -> str | None:
    """A number of a sentence with the formula that it is part of; None if that is not all there, or words alter it.

    Args:
        text: the sentence.
        start: where the number begins.
        end: where it ends.
    """
    if is_altered(text, start, end):
        return None
    number = text[start:end].replace("$", "").rstrip(",").strip()
    letters = _LETTERS_BEHIND.match(text, end)
    if letters and not _may_follow(letters.group()):
        return None  # 5k, 5x
    run = _run(text, start)
    spans = [found.span() for found in _FORMULA.finditer(run.group())]
    spans = [span for span in spans if start < run.start() + span[1] and run.start() + span[0] < end]
    chunk = run.group()[spans[0][0] : spans[-1][1]]  # of 2 1/2, both
    formula = chunk.rpartition("=")[2]
    if formula.strip(_LAYOUT).replace("$", "") in (number, number.lstrip(".-\u2212\u2013")):
        is_factorial = re.match(r"!\s+[a-z]", text[end:])  # no sign of joy
        if not is_factorial:
            return None if _is_operand(text, chunk, run, end) else number
    formula = _TIMES.sub("\u00d7", formula.strip(" \n\t,.;:$").replace("$", ""))
    is_whole = re.match(rf"[\d.(\[√π¼-¾⅐-⅞\\a-z]|[{_MINUS}][\d.(√]", formula) and not _ENDS_OPEN.search(chunk)
    balanced = all(formula.count(one) == formula.count(other) for one, other in CLOSING.items())
    glued = re.search(r"\w$", text[: run.start()]) and not run.group()[:1].isspace()
    return formula if is_whole and balanced and not glued and not _goes_on(formula, text[run.end() :]) else None


def is_asked(text: str, end: int) -> bool:
    """Whether the sentence around `end`, or the last one, is a question, as in a repeated problem."""
    if _ASKED.match(text, end):
        return True
    last = _SENTENCES.split(text[end:].rstrip())[-1]
    return last.endswith("?") and bool(_QUESTION.search(last))


def is_altered(text: str, start: int, end: int) -> bool:
    """Whether words around a number make it another, such as "negative" and "million", or one of several."""
    before, behind = text[max(0, start - _BESIDE) : start], text[end : end + _BESIDE]
    return bool(_ALTERED_BEFORE.search(before) or _ALTERED_BEHIND.match(behind))


def _run(text: str, start: int) -> re.Match[str]:
    return next(found for found in _RUN.finditer(text) if found.start() <= start < found.end())


def _may_follow(letters: str) -> bool:
    """Whether letters right behind a number leave it as it is: 5km, 5th."""
    return letters in _ORDINALS or letters in _UNITS_OF_ONE_LETTER or is_unit_word(letters, spaced=True)


def _is_operand(text: str, chunk: str, run: re.Match[str], end: int) -> bool:
    """Whether a number alone in its run is a side of a formula with letters: n + 1, 2x > 5, 5 * x."""
    before = chunk.strip()
    if before[:1] and before[0] in "*/^<>\u2264\u2265\u00d7\u00b7\u00f7+" and not before.startswith("**"):
        return True
    if re.match(rf"[{_MINUS}]\s", before) and re.search(r"(?<![a-zA-Z])[a-zA-Z]\s*$", text[: run.start()]):
        return True
    return _goes_on(text[end : run.end()], text[run.end() :])


def _goes_on(part: str, behind: str) -> bool:
    """Whether a formula that ends with an operator goes on with a letter: 5 + x; not 5 - a pity."""
    sign = part.rstrip()[-1:]
    if not sign or not _VARIABLE.match(behind) or part.rstrip().endswith("**"):
        return False
    if re.match(rf"[{_MINUS}]", sign):
        return behind.lstrip()[:1] not in "aAI"
    return sign in "*/^+<>\u2264\u2265=\u00d7\u00b7\u00f7"
