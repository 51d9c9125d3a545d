"""Where in a completion its answer stands. Every function here takes time linear in the text, whatever the text."""

from __future__ import annotations

import re

_BOX = r"\boxed{"
# What announces an answer on its line; the last one counts.
_MARK = re.compile(r"####|:|=|\bis\b")
_NUMBER = re.compile(r"(?<![\w.])-?\$?[0-9][0-9,]*(?:\.[0-9]+)?")


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
