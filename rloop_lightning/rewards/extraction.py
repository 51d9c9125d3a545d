r"""Finds the answer in a completion.

`extract` looks in these places, in this order, and takes the first one there is; a mode leaves some of them out.

1. the content of the last `<answer>` tag
2. the last `\boxed{}`, or all boxes of a row such as `\boxed{1}` and `\boxed{2}`
3. what follows the last "the answer is", "Answer:", "答案是" or `####`
4. the end of the last line: what follows its last `:`, `=` or "is", else the last formula or number

Thoughts, that is all text before `</think>`, hold no answer. Time is linear in the length of the text.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from typing import Literal

from rloop_lightning.rewards.boxes import boxed, boxes
from rloop_lightning.rewards.cursor import CLOSING
from rloop_lightning.rewards.spelling import words
from rloop_lightning.rewards.units import CHANGING

Extract = Literal["auto", "box", "last"]

_THINK_END, _THINK = "</think>", "<think>"
_ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_ANSWER = re.compile(
    r"""\#{4}|答案\s*(?:是|为|為|\uff1a|:)?
      | \b(?:final|correct|right)?[ ]?(?:answer|option|choice)\b["*_`\s]{0,6}
        (?:(?:is|are|would\ be|will\ be|becomes|equals)\b[\s*_]{0,6}:?|[:=\uff1a]|(?=\n))""",
    re.VERBOSE | re.IGNORECASE,
)
# The last words of answers in the style of Minerva (arXiv 2206.14858, appendix D.1); they come after a box.
_CORRECTED = re.compile(r"final answer is\s*:?\s*([^\n]{1,400}?)\.?\s*I hope it is correct", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\s*I hope|<\||\.(?=\s)|。|(?<=[.!?])\s*$")
# Marks that precede an answer on its line; the last one counts.
_MARK = re.compile(r"####|(?<!\d):|:(?!\d)|=|\bis\b|\uff1a|是")
_MATH = re.compile(
    r"\$\$(?P<a>[^$]+)\$\$|(?<!\\)\$(?P<b>(?:\\\$|[^$\n])+)(?<!\\)\$|\\\((?P<c>(?:[^\\]|\\(?![()]))+)\\\)"
    r"|\\\[(?P<d>(?:[^\\]|\\(?![\[\]]))+)\\\]"
)
_ONE_FORMULA = re.compile(r"\$[^$]+\$")
_MINUS = "-\u2212"
_AMOUNT = r"(?:\d{1,3}(?:[, \u00a0\u2009\u202f']\d{3})+(?!\d)(?:\.\d+)?|\d+(?:[.,]\d+)?(?:[eE][-+]?\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_.^])(?<!\^\{{)(?:(?<![\d)])[{_MINUS}\u2013])?[$€£¥]?{_AMOUNT}"
    r"(?:(?<=\d)[ ]\d+/\d+(?![\d/]))?(?:\s?/\s?\d+(?![\d/]))?"
    r"(?:\s?(?:%|\\%|percent\b|pct\b))?"
)
_QUANTITY = re.compile(rf"\s*({_AMOUNT})\s?(?:[$€£¥](?![^$]*\$)|[ckmd]?m(?:[²³]|\^\{{?[23]\}}?)(?!\w))")
_FORMULA = re.compile(r"[-+]?(?:√|π|∞|[¼-¾⅐-⅞])\w*|\d*\s?(?:√\w+|π|[¼-¾⅐-⅞])")
_WORDS = re.compile(r"(?<![\\a-zA-Z{0-9])[a-zA-Z]{2,}|[\u4e00-\u9fff]")
_NO_WORDS = words(
    "sqrt pi sin cos tan log ln exp inf infinity oo and or abs arcsin arccos arctan percent pct asin acos atan"
)
_CHOICE = re.compile(r"[\s*_]*(?:(?:option|choice)\s+)?(\(?[A-J]\)?)(?=[\s.,:;*_)]|$)(?!\s*[-+=/*^])(?!\s+[a-z])")
_HEDGED = re.compile(r"\d[^\n]{0,40}?\b(?:or|maybe|perhaps|possibly)\b[^\n]{0,40}?\d|\beither\b", re.IGNORECASE)
# The mathematics around a number in a sentence, such as 2√5 in "2√5 meters".
_RUN = re.compile(
    r"(?:[\d.,:%+\-\u2212\u2013*/^=\u00d7\u00b7\u00f7√π∞!|<>≤≥°$€£¥()\[\]{}\s]|[¼-¾⅐-⅞]|\\[a-zA-Z]+"
    r"|(?<![a-zA-Z])(?:sqrt|pi|sin|cos|tan|log|ln|exp|percent|pct)(?![a-zA-Z])|(?<![a-zA-Z])[a-zA-Z](?=\s?=)"
    r"|(?<=\d\s)x(?=\s\d))+"
)
# What stands before or behind a number and makes it another one, or one of several.
_ALTERED_BEFORE = re.compile(
    r"\b(?:negative|minus|not|isn't|(?:half|third|quarter|tenth|root|square|cube|multiple|fraction|percent) of"
    r"|twice|double|triple|\d\s*(?:,|,?\s*(?:and|or))(?:\s*[a-z](?:_?\d)?\s*=)?)\s*$",
    re.IGNORECASE,
)
_ALTERED_BEHIND = re.compile(
    rf"\s*\(?(?:{'|'.join(sorted(CHANGING))})\b|\s*(?:[a-z]+\s*)?,?\s*\b(?:and|or|to)\s+(?:[a-z]\s*=\s*)?[-$]?\d"
    r"|\s*(?:hours?|minutes?|days?|weeks?|months?|years?|feet|foot|ft|yards?|pounds?|lbs?|dollars?)\s+\d",
    re.IGNORECASE,
)
_MAX_TAIL = 10_000  # characters at the end of a text in which its last number is looked for
_MATHEMATICS = re.compile(r"[\d$\\√π∞¼-¾⅐-⅞]")  # no answer in words has these
_MAX_WORDS = 4  # of an answer in words
_BESIDE = 60  # characters beside a number that can alter it


def extract(text: str, mode: Extract = "auto") -> str | None:
    """The answer in a completion; None if there is none in the places of `mode`.

    Args:
        text: a completion.
        mode: `box`, only in a box; `last`, only at the end of the last line; `auto`, in all places above.
    """
    if _THINK_END in text:
        text = text[text.rfind(_THINK_END) + len(_THINK_END) :]
    elif _THINK in text:
        return None  # it ended while it was thinking
    if mode == "last":
        return last_answer(text)
    if mode == "auto":
        tags = _ANSWER_TAG.findall(text) if "<answer>" in text.lower() else []
        if tags:
            text = tags[-1]
            if not boxed(text) and (not _has_words(text) or _CHOICE.match(text) or not _MATHEMATICS.search(text)):
                return text.strip() or None
    row = boxed(text)
    corrected = list(_CORRECTED.finditer(text)) if mode == "auto" and row else []
    if corrected and corrected[-1].start() > boxes(text)[-1][0]:
        return corrected[-1].group(1)
    if row or mode == "box":
        return row[-1] if row else None
    return _stated(text)


def _stated(text: str) -> str | None:
    """The answer in a completion without a box."""
    whole = text.strip().lstrip("#")
    if _ONE_FORMULA.fullmatch(whole) or (
        not _has_words(whole) and "\n" not in whole and len(_MATH.findall(whole)) <= 1
    ):
        return whole or None
    marks = list(_ANSWER.finditer(text))
    if marks:
        rest = text[marks[-1].end() :].lstrip(" *_:\uff1a\n\t")
        line = rest if rest.startswith(("$$", r"\[")) else rest.partition("\n")[0]
        answer = _in_sentence(_SENTENCE_END.split(line[:_MAX_TAIL], maxsplit=1)[0])
        if answer is not None:
            return answer
        said = _SENTENCE_END.split(line[:_MAX_TAIL], maxsplit=1)[0].strip(" *_")
        few = len(said.split()) <= _MAX_WORDS or marks[-1].group() == "####"
        if said and few and not _MATHEMATICS.search(rest):
            return said
    return last_answer(text)


def _in_sentence(sentence: str) -> str | None:
    """The answer in what follows "the answer is"."""
    sentence = _balanced(sentence)
    choice = _CHOICE.match(sentence)
    if choice and not re.match(r"[\s*_]*[A-J]\s+(?:[a-z]|=)", sentence):
        return choice.group(1)
    if not _has_words(sentence) or _HEDGED.search(sentence):
        return sentence or None
    return last_answer(sentence, first=True)


def _balanced(text: str) -> str:
    """`text` without the quotes and braces of JSON around it: `5"}`."""
    return (text.rstrip("}\"'*_ ") if text.count("}") > text.count("{") else text).strip()


def _has_words(text: str) -> bool:
    """Whether the text has words that are neither functions nor in `\\text{}`."""
    return any(word.lower() not in _NO_WORDS for word in _WORDS.findall(text))


def last_answer(text: str, first: bool = False) -> str | None:
    """The answer at the end of a text, as in GSM8K: 80 for a last line "A: 80", "#### 80" or "So there are 80 left."

    The answer is the text after the last mark (`####`, `:`, `=`, "is") on the last non-empty line, without a final full
    stop, if that text contains no words. Otherwise it is the last formula or number of the text, whichever is later, or
    None if there is none.

    Args:
        text: any text.
        first: take the first number of the text, not the last.
    """
    text = text.rstrip()[-_MAX_TAIL:]
    line = text[text.rfind("\n") + 1 :]
    inside = [(found.start(), found.end()) for found in _MATH.finditer(line) if not _is_prose(found)]
    marks = (mark for mark in reversed(list(_MARK.finditer(line))) if not _within(mark, inside))
    mark = next(marks, None)
    if mark:
        answer = _balanced(line[mark.end() :].strip(" *_").removesuffix(".").strip(" *_"))
        amount = _QUANTITY.match(answer)
        if amount:
            return amount.group(1)
        if answer and not _has_words(answer):
            return line if _altered(line, mark.end(), len(line)) else answer
    formulas = [found for found in _MATH.finditer(text) if not _is_prose(found)]
    inside = [(found.start(), found.end()) for found in formulas]
    numbers = [
        found for pattern in (_NUMBER, _FORMULA) for found in pattern.finditer(text) if not _within(found, inside)
    ]
    if first and numbers and not formulas:
        return _around(min(numbers, key=lambda found: found.start()), text)
    candidates = sorted([*formulas, *numbers], key=lambda found: (found.end(), -found.start()))
    if not candidates:
        return None
    last = candidates[-1]
    if last in formulas:
        percent = re.match(r"\s*(?:%|percent\b|pct\b)", text[last.end() :])
        return _row(text, formulas) + (r"\%" if percent else "")
    return line if _altered(text, last.start(), last.end()) else last.group().replace("$", "").rstrip(",").strip()


def _around(number: re.Match[str], text: str) -> str:
    """The mathematics around the first number of a sentence, behind its last `=`; the sentence if words alter it."""
    run = next(found for found in _RUN.finditer(text) if found.start() <= number.start() < found.end())
    behind = run.group().rindex("=") + 1 if "=" in run.group() else 0
    part = run.group()[behind:]
    answer = part.strip(" \n\t,.;:").rstrip(" +-*/^=([{<,.:\u2212\u2013").replace("$", "").strip()
    if answer[:1] in CLOSING and answer.count(answer[0]) > answer.count(CLOSING[answer[0]]):
        answer = answer[1:]  # (5 apples)
    start = run.start() + behind + len(part) - len(part.lstrip())
    if not any(map(str.isdigit, answer)) or _altered(text, start, start + len(part.strip())):
        return text
    return answer


def _altered(text: str, start: int, end: int) -> bool:
    """Whether words around a number make it another, such as "negative" and "million", or one of several."""
    before, behind = text[max(0, start - _BESIDE) : start], text[end : end + _BESIDE]
    return bool(_ALTERED_BEFORE.search(before) or _ALTERED_BEHIND.match(behind))


def _within(found: re.Match[str], spans: list[tuple[int, int]]) -> bool:
    i = bisect_right(spans, (found.start(), sys.maxsize))
    return i > 0 and found.start() < spans[i - 1][1]


def _is_prose(formula: re.Match[str]) -> bool:
    """Whether a match of `$...$` is text between two prices."""
    content = next(group for group in formula.groups() if group is not None)
    return formula.group("b") is not None and (_has_words(re.sub(r"\\[a-zA-Z]+(?:\{[^{}]*\})?", " ", content)))


def _row(text: str, formulas: list[re.Match[str]]) -> str:
    """The last formula, joined with those before it that "and" or a comma connects."""
    row = [formulas[-1]]
    for formula in reversed(formulas[:-1]):
        if not re.fullmatch(r"[\s,]*(?:and|or|,)[\s,]*", text[formula.end() : row[0].start()]):
            break
        row.insert(0, formula)
    return " , ".join(next(group for group in f.groups() if group is not None).strip() for f in row)
