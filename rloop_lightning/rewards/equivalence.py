r"""Whether an answer means the same as the gold answer, by math-verify. Runs in workers, so nothing here imports torch.

An answer is text with its mathematics marked (`$...$`, `\(...\)`, `\boxed{...}`), or it is bare. math-verify reads
bare text as a sentence, in which it looks for a number: `4, 12, 2` is 2 to it and `(x-2)(x+2)` nothing. So what is
bare and no sentence is read as one formula, unless it is a single number.
"""

from __future__ import annotations

import logging
import random
import re
from functools import lru_cache
from typing import Any, Literal

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Basic, Integer, MatrixBase  # type: ignore[import-untyped]  # sympy ships no types
from sympy.core.random import seed as seed_sympy  # type: ignore[import-untyped]  # likewise

Verdict = Literal["right", "wrong", "unparsable"]

for _name in ("math_verify.parser", "math_verify.grader"):
    # They ask for a time limit, which the worker has, and quote what they can't read.
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_MARKED = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:[ ,]\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?|\.\d+)(?:\s*(?:%|[Pp]ercent|pct))?")
_TWO_NUMBERS = re.compile(r"-?\d+,(?!\d{3}$)\d+")  # 1,22 is a decimal to some and a list to others
_SENTENCE = re.compile(r"(?<![\\a-zA-Z{])[A-Za-z]{3,}|:\s")  # a word that is no command, or "A: 80"
_LONGEST_FORMULA = 1_000  # characters
_PLAIN = (ExprExtractionConfig(),)
_LATEX = (LatexExtractionConfig(),)


def check(task: tuple[str, str | None, bool]) -> Verdict:
    """A verdict on `(gold, text, is_answer)`: is the text, or the answer that math-verify finds in it, the gold?

    `is_answer` says that the text is the answer, words and all, and no sentence that holds it. Without a text the
    verdict is on whether the gold can be read. What can't be parsed is still right if it is the gold to the letter.
    """
    gold, answer, is_answer = task
    random.seed(0)  # some of sympy's tests for equality try random numbers
    seed_sympy(0)
    golds = _gold(gold)
    if answer is None:
        return "right" if _has_formula(golds) else "unparsable"
    answers = read(answer, is_answer)
    if golds and answers and _same(golds, answers):
        return "right"
    return "wrong" if _has_formula(answers) else "unparsable"


def _same(golds: tuple[Any, ...], answers: list[Any]) -> bool:
    if isinstance(golds[0], Integer) and isinstance(answers[0], Integer):
        return bool(golds[0] == answers[0])  # for which verify would take a millisecond
    # math-verify's time limits work by signals; the worker's take their place.
    return bool(verify(list(golds), answers, timeout_seconds=None))


@lru_cache(maxsize=4096)
def _gold(text: str) -> tuple[Any, ...]:
    return tuple(read(text, True))


def read(text: str, is_answer: bool) -> list[Any]:
    """What a text may mean: sympy objects, then the text that they were made of; empty if nothing was found.

    Args:
        text: any.
        is_answer: it is known to be an answer, words and all, and no sentence.
    """
    text = text.strip()
    if _MARKED.search(text):
        return _parse(text)
    if _NUMBER.fullmatch(text):
        readings = _parse(text, _PLAIN)
        return [*_parse(f"${text}$", _LATEX), *readings] if _TWO_NUMBERS.fullmatch(text) else readings
    if len(text) <= _LONGEST_FORMULA and "\n" not in text and (is_answer or not _SENTENCE.search(text)):
        readings = _parse(f"${text}$", _LATEX)
        if _has_formula(readings):
            return readings
    return _parse(text)


def _parse(text: str, targets: tuple[Any, ...] = (*_LATEX, *_PLAIN)) -> list[Any]:
    return list(parse(text, targets, parsing_timeout=None))


def _has_formula(readings: list[Any] | tuple[Any, ...]) -> bool:
    return any(isinstance(reading, (Basic, MatrixBase)) for reading in readings)
