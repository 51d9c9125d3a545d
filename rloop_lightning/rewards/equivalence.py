r"""Decides by math-verify whether an answer is equivalent to the gold answer. Runs in workers and imports no torch.

An answer is either text with marked mathematics (`$...$`, `\(...\)`, `\boxed{...}`) or bare text. math-verify treats
bare text as a sentence and searches it for a number: it reads `4, 12, 2` as 2 and finds nothing in `(x-2)(x+2)`. This
module therefore parses bare text that is not a sentence as one formula, unless it is a single number.
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
    # They ask for a time limit, which the worker enforces, and log every text that they can't parse.
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_MARKED = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:[ ,]\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?|\.\d+)(?:\s*(?:%|[Pp]ercent|pct))?")
_TWO_NUMBERS = re.compile(r"-?\d+,(?!\d{3}$)\d+")  # 1,22 can be a decimal number or a list
_SENTENCE = re.compile(r"(?<![\\a-zA-Z{])[A-Za-z]{3,}|:\s")  # a word that is not a command, or "A: 80"
_LONGEST_FORMULA = 1_000  # characters
_PLAIN = (ExprExtractionConfig(),)
_LATEX = (LatexExtractionConfig(),)


def check(task: tuple[str, str | None, bool]) -> Verdict:
    """Verdict on `(gold, text, is_answer)`: is the text, or the answer that math-verify finds in it, equal to the gold?

    `is_answer` tells that the whole text is the answer, not a sentence that contains it. If the text is None, the
    verdict is whether the gold answer can be parsed. A text that can't be parsed is still right if it is identical to
    the gold answer.
    """
    gold, answer, is_answer = task
    random.seed(0)  # some of sympy's equality tests use random numbers
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
        return bool(golds[0] == answers[0])  # verify would take a millisecond
    # math-verify's time limits use signals; the worker's limit replaces them.
    return bool(verify(list(golds), answers, timeout_seconds=None))


@lru_cache(maxsize=4096)
def _gold(text: str) -> tuple[Any, ...]:
    return tuple(read(text, True))


def read(text: str, is_answer: bool) -> list[Any]:
    """Possible readings of a text: sympy objects, followed by their source text; empty if nothing was found.

    Args:
        text: any text.
        is_answer: the whole text is known to be an answer, not a sentence.
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
