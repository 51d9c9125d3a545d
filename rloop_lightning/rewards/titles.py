r"""The left side of an equation that names its right side, if it is more than a name: `P(X=2)`, `\gcd(a,b)`.

What it says is not read: it becomes one token. `a(b+c)=6` and `\sin x=1` stay equations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rloop_lightning.rewards.altering import NEGATIONS
from rloop_lightning.rewards.spelling import words
from rloop_lightning.rewards.tokens import FUNCTIONS, MAX_TOKENS, Token, UnreadableError, tokenize

# With one of them, words say what the value is not.
DENYING = NEGATIONS | words("than least most")
_OPERATORS = "det|gcd|lcm|max|min|dim|rank|tr|trace|deg|arg|ker|sup|inf|ord|Pr|Var|Cov|Re|Im|Area|Vol|area|vol"
_INDEX = r"(?:'|_(?:\{[^{}]*\}|[A-Za-z0-9])|\^\s*(?:\{\s*-1\s*\}|\{\s*\(\w\)\s*\}))*"
_APPLIED = re.compile(
    rf"(?:[fghFGHPE]|\\(?:phi|psi|Phi|Psi)|\\mathbb\s*(?:\{{[EP]\}}|[EP])|\\(?:{_OPERATORS})(?![A-Za-z])"
    rf"|\\(?:text|mathrm)\s*\{{(?P<word>[A-Za-z]{{2,}})\}})\s*{_INDEX}\s*(?=[(\[]|\\\{{)"
)
_OF_A_NAME = re.compile(rf"\\(?:{_OPERATORS})(?![A-Za-z])\s*[A-Za-z]{_INDEX}|m\s*\\angle\s*[A-Z]{{1,3}}")
_NORM = re.compile(
    rf"\\\|\s*(?:\\(?:vec|mathbf|bm|boldsymbol|overrightarrow)\s*)?\{{?[A-Za-z]{{1,2}}\}}?{_INDEX}\s*\\\|"
)
_LIMIT = re.compile(r"\\lim(?![a-zA-Z])\s*_\s*\{[^{}]*\}(.+)", re.DOTALL)
_INTEGRAL = re.compile(r"\\(?:i{0,2}|o)int(?![a-zA-Z]).*?(?:d|\\mathrm\{d\})\s*(?:[A-Za-z]|\\[a-z]+)", re.DOTALL)
_WORDS = re.compile(r"\\text\s*\{\s*([A-Za-z][A-Za-z' -]+)\}\s*(?:(?:\\triangle\s*)?[A-Z]{1,5})?")
_BREAK = re.compile(r"\\[{}]|\\approx(?![a-zA-Z])|\\text\{\s*(?:and|or)\s*\}|(?<= )(?:and|or)(?= )|[()\[\]{},;=]")


def tokenize_named(text: str) -> list[Token]:
    """The tokens of a normalised answer; the left side of an equation is one if it is a title."""
    tokens: list[Token] = []
    last = 0
    for start, end in _left_sides(text):
        left = text[start:end].strip()
        if _is_title(left):
            tokens += [*tokenize(text[last:start]), Token("title", re.sub(r"\s", "", left.replace(r"\mid", "|")))]
            last = end
    tokens += tokenize(text[last:])
    if len(tokens) > MAX_TOKENS:
        raise UnreadableError(f"more than {MAX_TOKENS} tokens")
    return tokens


def _left_sides(text: str) -> Iterator[tuple[int, int]]:
    """Where the first side of each equation of a list stands."""
    depth, start, named = 0, 0, False
    for found in _BREAK.finditer(text):
        mark = found.group()
        depth += (mark in ("(", "[", "{", r"\{")) - (mark in (")", "]", "}", r"\}"))
        if depth == 0 and mark in ("=", r"\approx"):
            if not named:
                yield start, found.start()
            named = True
        elif depth == 0 and mark not in (")", "]", "}", r"\}"):
            start, named = found.end(), False


def _is_title(left: str) -> bool:
    applied = _APPLIED.match(left)
    if applied:
        return applied.group("word") not in FUNCTIONS and _spans(left[applied.end() :])
    if _OF_A_NAME.fullmatch(left) or _NORM.fullmatch(left):
        return True
    limit, said = _LIMIT.fullmatch(left), _WORDS.fullmatch(left)
    if limit:
        return not _has_sum(limit.group(1))
    if said:
        return not DENYING & set(said.group(1).lower().split())
    return _INTEGRAL.fullmatch(left) is not None and not re.search(r"d\s*\\?[A-Za-z]+\s*[-+]", left)


def _spans(text: str) -> bool:
    """Whether the bracket at the start of a text closes at its end."""
    depth = 0
    for found in re.finditer(r"\\[{}]|[()\[\]{}]", text):
        depth += (found.group() in ("(", "[", "{", r"\{")) - (found.group() in (")", "]", "}", r"\}"))
        if depth == 0:
            return found.end() == len(text)
    return False


def _has_sum(text: str) -> bool:
    depth = 0
    for mark in text:
        depth += (mark in "([{") - (mark in ")]}")
        if depth == 0 and mark in "+-":
            return True
    return False
