"""Where in a completion its answer stands, and the form of an answer.

Every function here takes time linear in the text, whatever the text.
"""

from __future__ import annotations

import re

_BOX = r"\boxed{"
# What announces an answer on its line; the last one counts.
_MARK = re.compile(r"####|:|=|\bis\b")
_NUMBER = re.compile(r"(?<![\w.])-?\$?[0-9][0-9,]*(?:\.[0-9]+)?")
# An exponent or a base, which may decide what a text means; or else a whole number.
_DIGITS = re.compile(r"[\^_]\s*\{?\s*-?[0-9]+|[0-9]+")
# Powers of powers, factorials, sums and the like: what the numbers are decides whether they can be computed.
_DELICATE = re.compile(r"\^\s*\{[^{}]*\^|\^\s*\(|\*\*|(?<!\\)!|\\(?:binom|sum|prod|int|lim)")


def last_box(text: str) -> str | None:
    """What stands in the last `\\boxed{}`; None where there is none or its braces don't balance."""
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
    """The answer at the text's end, as GSM8K has it: 80 of a last line "A: 80", "#### 80" or "So there are 80 left."

    It is what follows the last mark (`####`, `:`, `=`, "is") on the last line that is not empty, less a full stop, if
    that holds no words; else the last number of the text; None where there is none.
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
    r"""What two answers share of which either both can be read or neither: `\frac{##}{#}` of `\frac{25}{7}`.

    Numbers stand for any of one digit, or of several, but for 0, exponents and bases.
    """
    if _DELICATE.search(answer):
        return answer
    return _DIGITS.sub(lambda found: _number_form(found.group()), answer)


def _number_form(digits: str) -> str:
    return "#" * min(2, len(digits)) if digits.isdigit() and digits.strip("0") else digits
