"""Extracts the answer from a completion, and reduces an answer to its form.

Every function takes time linear in the length of the text, for any text.
"""

from __future__ import annotations

import re

_BOX = r"\boxed{"
# Marks that precede an answer on its line; the last one counts.
_MARK = re.compile(r"####|:|=|\bis\b")
_NUMBER = re.compile(r"(?<![\w.])-?\$?[0-9][0-9,]*(?:\.[0-9]+)?")
# An exponent or a base, whose value may decide what a text means; otherwise an integer.
_DIGITS = re.compile(r"[\^_]\s*\{?\s*-?[0-9]+|[0-9]+")
# Powers of powers, factorials, sums etc.: the values of the numbers decide whether they can be computed.
_DELICATE = re.compile(r"\^\s*\{[^{}]*\^|\^\s*\(|\*\*|(?<!\\)!|\\(?:binom|sum|prod|int|lim)")


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


def last_answer(text: str) -> str | None:
    """The answer at the end of a text, as in GSM8K: 80 for a last line "A: 80", "#### 80" or "So there are 80 left."

    The answer is the text after the last mark (`####`, `:`, `=`, "is") on the last non-empty line, without a final full
    stop, if that text contains no words. Otherwise it is the last number of the text, or None if there is no number.
    """
    text = text.rstrip()
    line = text[text.rfind("\n") + 1 :]
    marks = list(_MARK.finditer(line))
    if marks:
        answer = line[marks[-1].end() :].strip().removesuffix(".")
        if answer and not re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", answer):
            return answer
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace("$", "").rstrip(",") if numbers else None


def form(answer: str) -> str:
    r"""The form of an answer, such as `\frac{##}{#}` for `\frac{25}{7}`.

    Two answers of one form are either both readable or both not.
    `#` stands for a number of one digit and `##` for one of several digits. 0, exponents and bases are kept.
    """
    if _DELICATE.search(answer):
        return answer
    return _DIGITS.sub(lambda found: _number_form(found.group()), answer)


def _number_form(digits: str) -> str:
    return "#" * min(2, len(digits)) if digits.isdigit() and digits.strip("0") else digits
