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

from rloop_lightning.rewards.cursor import CLOSING
from rloop_lightning.rewards.spelling import words
from rloop_lightning.rewards.units import CHANGING

Extract = Literal["auto", "box", "last"]

_BOX = r"\boxed{"
_BOX_OR_BRACE = re.compile(
    r"(\\{1,4}(?:boxed|fbox|framebox)\s*\{|(?<![\\A-Za-z])boxed\{)|\\{1,4}boxed\s{0,4}([0-9A-Za-z])|\\[{}]|[{}]"
)
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
_MAX_GAP = 60  # characters between two boxes of a row
# Between two boxes, what is layout, a product or names the second: $, \quad, \text{ and }, \cdot, x =
_GAP_LAYOUT = re.compile(
    r"\\(?:q?quad|text|mathrm|cdot|times|[,;:! ()])(?![a-zA-Z])|[${}&~*]|\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*="
)
_LIST_GAP = re.compile(r"[\s,;:+*/-]*|[^=.]*\b(?:and|or)\b[\s,]*", re.IGNORECASE)


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
            if not _boxed(text) and not _has_words(text):
                return text.strip() or None
    boxed = _boxed(text)
    corrected = list(_CORRECTED.finditer(text)) if mode == "auto" and boxed else []
    if corrected and corrected[-1].start() > _boxes(text)[-1][0]:
        return corrected[-1].group(1)
    if boxed or mode == "box":
        return boxed[-1] if boxed else None
    return _stated(text)


def _boxed(text: str) -> list[str | None]:
    """What the last row of boxes contains, as a list of one; [None] if the last box isn't closed, [] without a box."""
    boxes = _boxes(text)
    if not boxes:
        return []
    if boxes[-1][1] is None:
        return [None]
    row: list[tuple[int, int, str]] = []
    for start, end, content in reversed(boxes):
        if end is None or (row and not _joins(text[end : row[0][0]])):
            break
        row.insert(0, (start, end, content))
    return [" , ".join(dict.fromkeys(content.strip() for _, _, content in row))]


def _boxes(text: str) -> list[tuple[int, int | None, str]]:
    """Start, end and content of each box that is not in another, in order; the end of one that isn't closed is None."""
    opened: list[tuple[int, int] | None] = []  # the open braces: of a box, its start and where its content begins
    boxes: list[tuple[int, int | None, str]] = []
    for found in _BOX_OR_BRACE.finditer(text):
        mark = found.group()
        if found.group(1):
            opened.append((found.start(), found.end()))
        elif found.group(2):
            boxes.append((found.start(), found.end(), found.group(2)))
        elif mark == "{":
            opened.append(None)
        elif mark == "}" and opened:
            box = opened.pop()
            if box is not None:
                while boxes and boxes[-1][0] > box[0]:
                    boxes.pop()  # a box in a box
                boxes.append((box[0], found.end(), text[box[1] : found.start()]))
    boxes += [(box[0], None, "") for box in opened if box is not None]
    return sorted(boxes, key=lambda box: box[0])


def _joins(gap: str) -> bool:
    """Whether what stands between two boxes makes them one list: only a comma or a sign, or words up to "and" or "or".

    Of two boxes with a sign between them, neither is the answer.
    """
    if len(gap) > _MAX_GAP or "\n" in gap.strip(" "):
        return False
    return _LIST_GAP.fullmatch(_GAP_LAYOUT.sub(" ", gap)) is not None


def last_box(text: str) -> str | None:
    """The content of the last `\\boxed{}`; None if there is none or its braces don't balance."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth = 1
    for brace in re.finditer(r"[{}]", text[start + len(_BOX) :]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start + len(_BOX) :][: brace.start()]
    return None


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
    before, behind = text[max(0, start - _MAX_GAP) : start], text[end : end + _MAX_GAP]
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
