r"""Finds the boxes of a completion, `\boxed{5}`, and joins those that are one list."""

from __future__ import annotations

import re

_BOX = r"\boxed{"
_BOX_OR_BRACE = re.compile(
    r"(\\{1,4}(?:boxed|fbox|framebox)\s*\{|(?<![\\A-Za-z])boxed\{)|\\{1,4}boxed\s{0,4}([0-9A-Za-z])|\\[{}]|[{}]"
)
_MAX_GAP = 60  # characters between two boxes of a row
# Between two boxes, what is layout, a product or names the second: $, \quad, \text{ and }, \cdot, x =
_GAP_LAYOUT = re.compile(
    r"\\(?:q?quad|text|mathrm|cdot|times|[,;:! ()])(?![a-zA-Z])|[${}&~*]|\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\(\w+\))?\s*="
)
_LIST_GAP = re.compile(r"[\s,;:+*/-]*|[^=.]*\b(?:and|or)\b[\s,]*", re.IGNORECASE)


def boxed(text: str) -> list[str | None]:
    """What the last row of boxes contains, as a list of one; [None] if the last box isn't closed, [] without a box."""
    found = boxes(text)
    if not found:
        return []
    if found[-1][1] is None:
        return [None]
    row: list[tuple[int, int, str]] = []
    for start, end, content in reversed(found):
        if end is None or (row and not _joins(text[end : row[0][0]])):
            break
        row.insert(0, (start, end, content))
    return [" , ".join(dict.fromkeys(content.strip() for _, _, content in row))]


def boxes(text: str) -> list[tuple[int, int | None, str]]:
    """Start, end and content of each box that is not in another, in order; the end of one that isn't closed is None."""
    opened: list[tuple[int, int] | None] = []  # the open braces: of a box, its start and where its content begins
    found: list[tuple[int, int | None, str]] = []
    for part in _BOX_OR_BRACE.finditer(text):
        mark = part.group()
        if part.group(1):
            opened.append((part.start(), part.end()))
        elif part.group(2):
            found.append((part.start(), part.end(), part.group(2)))
        elif mark == "{":
            opened.append(None)
        elif mark == "}" and opened:
            box = opened.pop()
            if box is not None:
                while found and found[-1][0] > box[0]:
                    found.pop()  # a box in a box
                found.append((box[0], part.end(), text[box[1] : part.start()]))
    found += [(box[0], None, "") for box in opened if box is not None]
    return sorted(found, key=lambda box: box[0])


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
