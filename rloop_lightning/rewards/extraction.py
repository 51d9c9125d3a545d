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
from rloop_lightning.rewards.neighbours import first_number, is_altered, is_asked, whole_number
from rloop_lightning.rewards.spelling import words

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
_HOPE = re.compile(r"I hope it is correct", re.IGNORECASE)
_FINAL = re.compile(r"final answer is[^\S\n]*:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"I hope|<\||\.(?=\s)|。|(?<=[.!?])$")
# Marks that precede an answer on its line; the last one counts.
_MARK = re.compile(r"####|(?<!\d\s)(?:(?<!\d):|:(?!\d))|=|\bis\b|\uff1a|是")  # but not in 5 : 3
# Behind an answer, why it is right, or what else there is.
_EXPLAINED = re.compile(
    r"[,;:(]?(?<=[\s,;:(])(?:because|since|as|where|which|with|given|check|note)\b|:\s(?=[a-z]+\s)",
    re.IGNORECASE,
)
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
_FORMULA = re.compile(r"[-+]?(?:√|π|∞|[¼-¾⅐-⅞])\w*|(?<!\d)\d*\s?(?:√\w+|π|[¼-¾⅐-⅞])")
_WORDS = re.compile(r"(?<![\\a-zA-Z{0-9])[a-zA-Z]{2,}|[\u4e00-\u9fff]")
_NO_WORDS = words(
    "sqrt pi sin cos tan log ln exp inf infinity oo and or abs arcsin arccos arctan percent pct asin acos atan"
)
_CHOICE = re.compile(
    r"[\s*_]*(?:(?:option|choice)\s+)?(?P<letter>\([A-J]\)|[A-J](?!\s*[-+=/^]|\s*\*(?!\*)|\s+[a-z]))(?=[\s.,:;*_)]|$)"
)
# Behind a choice, a further one: A, B; A (or B); A. B. C.
_OTHER_CHOICE = re.compile(
    r"[\s*_]*[.,;/&|(]?[\s*_(]*(?:(?:and|or|maybe|perhaps|possibly|either|also|even|option|choice)\b[\s*_,]*)*"
    r"\(?[A-J]\)?[\s*_]*(?:[.,;:)/&|]|$|(?:and|or)\b)"
)
_CONTENT = re.compile(r"[.:)\s*_]*[^\s.,:;)*_-]")  # of a choice, behind its letter
_HEDGED = re.compile(r"\d[^\n]{0,40}?\b(?:or|maybe|perhaps|possibly)\b[^\n]{0,40}?\d|\beither\b", re.IGNORECASE)
_MAX_TAIL = 10_000  # characters at the end of a text in which its last number is looked for
_MATHEMATICS = re.compile(r"[\d$\\√π∞¼-¾⅐-⅞]")  # no answer in words has these
_DENIED = re.compile(r"\b(?:wrong|incorrect|false)\s*$", re.IGNORECASE)
_MAX_WORD = 20  # characters of a word before "answer"
_MAX_WORDS = 4  # of an answer in words
_MAX_CORRECTED = 400  # characters of an answer that "I hope it is correct" follows


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
    if mode == "auto" and row and (corrected := _corrected(text, after=boxes(text)[-1][0])):
        return corrected
    if row or mode == "box":
        return row[-1] if row else None
    return _stated(text)


def _corrected(text: str, after: int) -> str | None:
    """The answer in "The final answer is X. I hope it is correct." behind a box."""
    for hope in reversed(list(_HOPE.finditer(text, after))):
        start = max(after, hope.start() - _MAX_CORRECTED)
        said = text[start : hope.start()]
        if final := list(_FINAL.finditer(said)):
            answer = said[final[-1].end() :].strip().removesuffix(".").strip()
            return answer if answer and "\n" not in answer else None
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
        if _DENIED.search(text[: marks[-1].start()][-_MAX_WORD:]):
            return text  # the wrong answer is 7
        answer = _choice(line[:_MAX_TAIL]) or _in_sentence(_SENTENCE_END.split(line[:_MAX_TAIL], maxsplit=1)[0])
        if answer is not None:
            return answer
        said = _SENTENCE_END.split(line[:_MAX_TAIL], maxsplit=1)[0].strip(" *_")
        few = len(said.split()) <= _MAX_WORDS or marks[-1].group() == "####"
        if said and few and not _MATHEMATICS.search(rest):
            return said
    return last_answer(text)


def _choice(line: str) -> str | None:
    """The choice that a line begins with, with its content: `(B) 12`; the line if further choices follow."""
    choice = _CHOICE.match(line)
    if not choice:
        return None
    if _OTHER_CHOICE.match(line, choice.end()):
        return line
    if not _CONTENT.match(line, choice.end()):
        return choice["letter"]
    behind = choice.end() + 1  # the full stop of `B. 12` ends no sentence
    sentence = _SENTENCE_END.split(line[behind:], maxsplit=1)[0]
    return (line[choice.start("letter") : behind] + sentence).strip(" *_")


def _in_sentence(sentence: str) -> str | None:
    """The answer in what follows "the answer is"."""
    before = _EXPLAINED.split(sentence, maxsplit=1)[0]
    if _MATHEMATICS.search(before) and not _has_words(before):
        sentence = before
    sentence = _balanced(sentence)
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
            return line if is_altered(line, mark.end(), len(line)) else answer
    formulas = [found for found in _MATH.finditer(text) if not _is_prose(found)]
    inside = [(found.start(), found.end()) for found in formulas]
    numbers = [
        found for pattern in (_NUMBER, _FORMULA) for found in pattern.finditer(text) if not _within(found, inside)
    ]
    if first and numbers and not formulas:
        return first_number(text, min(found.start() for found in numbers))
    candidates = sorted([*formulas, *numbers], key=lambda found: (found.end(), -found.start()))
    if not candidates:
        return None
    last = candidates[-1]
    if is_asked(text, last.end()):
        return line
    if last in formulas:
        percent = re.match(r"\s*(?:%|percent\b|pct\b)", text[last.end() :])
        return _row(text, formulas) + (r"\%" if percent else "")
    return whole_number(text, last.start(), last.end()) or line


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
