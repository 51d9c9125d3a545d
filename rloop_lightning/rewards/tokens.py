r"""Cuts a normalised answer into tokens. Any character or command that is not listed makes the answer unreadable.

A token's `kind`: `number`, `name` (a variable, a Greek letter, `\vec{a}`), `command` (a function or a construction),
`word` (plain letters), `text` (from `\text{...}`), `join` ("and", "or"), `sign` (one character or operator).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rloop_lightning.rewards.spelling import words

MAX_TOKENS = 600
_MAX_DIGITS = 4_000  # int() refuses 4,300

FUNCTIONS = words(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch arcsinh "
    "arccosh arctanh ln log lg exp"
)
_CONSTRUCTIONS = words("frac sqrt binom choose sum prod pm mp lfloor rfloor lceil rceil abs")
_OPERATORS = {
    "times": "*", "cdot": "*", "div": "/", "leq": "<=", "geq": ">=", "neq": "!=", "approx": "~", "in": "in",
    "cup": "cup", "cap": "cap", "setminus": "setminus", "emptyset": "emptyset", "infty": "infty", "degree": "degree",
    "mid": "mid", "langle": "(", "rangle": ")", "to": "to", "rightarrow": "to", "backslash": "setminus",
}  # fmt: skip
GREEK = words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi "
    "psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
_NAMES = GREEK | {"aleph", "hbar", "ell", "imath", "jmath", "nabla", "partial", "beth"}
_TEXTS = frozenset({"text", "textbf", "mathrm", "mathbf", "boldsymbol", "bm", "mathit", "mathsf"})
_BOLD = frozenset({"mathbf", "boldsymbol", "bm"})
_ACCENTS = frozenset(
    {"vec", "hat", "bar", "tilde", "overline", "overrightarrow", "widehat", "dot", "overleftrightarrow"}
)
_ALPHABETS = frozenset({"mathbb", "mathcal", "mathscr", "mathfrak"})
_WRAPPERS = frozenset({"boxed", "fbox", "framebox", "underline", "mathop", "mathord"})
_PLAIN = {"sqrt": "sqrt", "abs": "abs", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh",
          "acosh": "arccosh", "atanh": "arctanh", "cosec": "csc"}  # fmt: skip
_INFINITY = frozenset({"inf", "infty", "infinity", "oo"})
_PERCENT = frozenset({"percent", "percentage", "pct"})
CURRENCIES = {
    "$": "dollar",
    "€": "euro",
    "£": "sterling",
    "¥": "yen",
    "₹": "rupee",
    "₽": "ruble",
    "₩": "won",
    "¢": "cent",
}
OPEN, CLOSE = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")
_GAP = "\N{NARROW NO-BREAK SPACE}"
_TOKEN = re.compile(
    rf"""
    (?P<repeating>\d*\.\d*\s*\\(?:overline|dot|bar)\s*(?:\{{\s*\d+\s*\}}|\d)|\d+\.\d*\(\d+\)(?!\d))
  | (?P<scientific>(?:\d+(?:\.\d+)?|\.\d+)[eE][+-]?\d+(?![a-zA-Z0-9.]))
  | (?P<number>[1-9]\d{{0,2}}(?:[{_GAP} ]\d{{3}})+(?![\d{_GAP}])(?:\.\d+)?|\d+\.\d+|\.\d+|\d+)
  | (?P<command>\\[a-zA-Z]+)
  | (?P<escaped>\\[{{}}|$%&\#_\\])
  | (?P<letters>[A-Za-z]+)
  | (?P<sign>[-+*/^_()\[\]{{}}=<>|,;:!&'.%?"]|[{"".join(CURRENCIES)}])
  | (?P<space>[{_GAP}\s]+)
    """,
    re.VERBOSE | re.ASCII,
)
_GROUP = re.compile(r"\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")  # with up to two levels of braces in it
_WORDS = re.compile(r"[A-Za-z]{2,}|[A-Za-z]\s*/\s*[A-Za-z]|\b[ap]\.\s?m\b")  # more than names of variables
_SQUARE_METRE = re.compile(r"[mgsLNJWVK]\s*\^\s*\{?-?[1-3]\}?")
_UPRIGHT_UNITS = tuple("msghLNJWVK")
_OPTION = re.compile(r"(?:option|choice|answer)\s*:?\s+\(?([A-Ja-j])\)?", re.IGNORECASE)


class UnreadableError(ValueError):
    """The answer is no mathematics that is read as a whole; the message says what is in the way."""


@dataclass(frozen=True)
class Number:
    """A literal: its exact value, whether it was written as a decimal, and its precision.

    Args:
        value: the exact value.
        decimal: written with a decimal point or an exponent.
        digits: significant digits written.
        unit: value of one in the last digit written.
    """

    value: Fraction
    decimal: bool = False
    digits: int = 0
    unit: Fraction = Fraction(1)


@dataclass(frozen=True)
class Token:
    """A token; `spaced` tells that a space precedes it."""

    kind: str
    text: str
    number: Number | None = None
    spaced: bool = False

    @property
    def nesting(self) -> int:
        """1 for a bracket that opens, -1 for one that closes, else 0."""
        return (self.text in OPEN) - (self.text in CLOSE) if self.kind == "sign" else 0


def tokenize(text: str) -> list[Token]:
    """The tokens of a normalised answer. Raises UnreadableError."""
    tokens: list[Token] = []
    position, spaced = 0, False
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise UnreadableError(f"the character {text[position]!a}")
        position = found.end()
        kind, part = str(found.lastgroup), found.group()
        if kind == "space":
            spaced = True
            continue
        if kind in ("number", "scientific", "repeating"):
            tokens.append(Token("number", re.sub(rf"[{_GAP}\s]", "", part), _literal(kind, part), spaced))
        elif kind == "command":
            position = _command(part[1:], text, position, spaced, tokens)
        elif kind == "letters":
            tokens += _letters(part, spaced)
        else:
            tokens.append(Token("sign", part, None, spaced))
        spaced = False
        if len(tokens) > MAX_TOKENS:
            raise UnreadableError(f"more than {MAX_TOKENS} tokens")
    return tokens


def _literal(kind: str, text: str) -> Number:
    text = re.sub(rf"[{_GAP}\s]", "", text)
    if len(text) > _MAX_DIGITS:
        raise UnreadableError(f"a number of {len(text)} characters")
    if kind == "repeating":
        whole, _, rest = text.partition(".")
        *before, again = re.findall(r"\d+", rest)
        once = "".join(before)
        nines = 10 ** len(again) - 1
        value = Fraction(int(whole or "0") * 10 ** len(once) + int(once or "0")) + Fraction(int(again), nines)
        return Number(value / 10 ** len(once))
    mantissa, _, exponent = text.lower().partition("e")
    power = int(exponent or "0")
    if abs(power) > 5000:
        raise UnreadableError(f"the exponent {power}")
    whole, _, places = mantissa.partition(".")
    unit = Fraction(10) ** (power - len(places))
    digits = (whole + places).lstrip("0")
    decimal = bool(places) or kind == "scientific"
    return Number(int(whole + places) * unit, decimal, len(digits), unit)


def _letters(run: str, spaced: bool) -> list[Token]:
    lower = run.lower()
    if lower in _INFINITY:
        return [Token("sign", "infty", None, spaced)]
    if lower in _PERCENT:
        return [Token("sign", "%", None, spaced)]
    if lower in ("and", "or"):
        return [Token("join", lower, None, spaced)]
    if run in FUNCTIONS or run in _PLAIN:
        return [Token("command", _PLAIN.get(run, run), None, spaced)]
    if run in GREEK:
        return [Token("name", rf"\{run}", None, spaced)]
    if len(run) == 1:
        return [Token("name", run, None, spaced)]
    return [Token("word", run, None, spaced)]


def _command(name: str, text: str, position: int, spaced: bool, tokens: list[Token]) -> int:
    r"""Append the tokens of `\name`, whose argument begins at `position`; return where the rest begins."""
    if name in _TEXTS or name in _ALPHABETS or name in _ACCENTS:
        group = _GROUP.match(text, position) or re.compile(r"\s*([A-Za-z0-9])|\s*(?:\\([a-z]+))").match(text, position)
        if group is None:
            raise UnreadableError(rf"what follows \{name}")
        content = group.group(1) if group.group(1) is not None else "\\" + group.group(2)
        if name in _TEXTS:
            tokens += _text(name, content, spaced, behind_number=_ends_in_number(tokens))
        else:
            tokens.append(_accented(name, content, spaced))
        return group.end()
    if name in ("begin", "end"):
        environment = _GROUP.match(text, position)
        if environment is None:
            raise UnreadableError(rf"\{name}")
        tokens.append(Token("command", f"{name} {environment.group(1)}", None, spaced))
        position = environment.end()
        columns = _GROUP.match(text, position) if environment.group(1) == "array" and name == "begin" else None
        return columns.end() if columns else position
    if name in _OPERATORS:
        tokens.append(Token("sign", _OPERATORS[name], None, spaced))
    elif name in FUNCTIONS or name in _CONSTRUCTIONS:
        tokens.append(Token("command", name, None, spaced))
    elif name in ("angle", "triangle"):
        letters = re.compile(r"\s*([A-Za-z]+)").match(text, position)
        if letters is None:
            raise UnreadableError(rf"\{name}")
        tokens.append(Token("name", rf"\{name} {letters.group(1)}", None, spaced))
        return letters.end()
    elif name in _NAMES:
        tokens.append(Token("name", {"imath": "i", "jmath": "j"}.get(name, rf"\{name}"), None, spaced))
    elif name not in _WRAPPERS:
        raise UnreadableError(rf"the command \{name[:20]}")
    return position


def _ends_in_number(tokens: list[Token]) -> bool:
    """Whether the tokens end in a number, or in a fraction or a root of numbers."""
    if tokens and tokens[-1].kind == "sign" and tokens[-1].text == "}":
        return not any(token.kind in ("name", "word", "text") for token in tokens)
    return bool(tokens) and tokens[-1].kind == "number"


def _text(command: str, content: str, spaced: bool, behind_number: bool = False) -> list[Token]:
    bare = content.strip().strip(",").strip()
    if not bare.strip(".,;: "):
        return []
    option = _OPTION.fullmatch(bare)
    if option:
        return [Token("name", option.group(1), None, spaced)]
    if bare.lower() in ("and", "or"):
        return [Token("join", bare.lower(), None, spaced)]
    if bare.lower() in _PERCENT:
        return [Token("sign", "%", None, spaced)]
    if bare in FUNCTIONS:
        return [Token("command", bare, None, spaced)]
    if _SQUARE_METRE.fullmatch(bare) and (command == "mathrm" or content.startswith(" ")):
        return [Token("text", bare, None, spaced)]
    if not _WORDS.search(content) or bare.startswith("\\"):
        if command in _BOLD and re.fullmatch(r"[A-Za-z]", bare):
            return [Token("name", rf"\vec{{{bare}}}", None, spaced)]
        # 5\mathrm{m} and 5\text{ m} are metres, and so is 5\text{m}; \text{m} alone is a variable.
        unit = bare in _UPRIGHT_UNITS and (command == "mathrm" or (command == "text" and behind_number))
        upright = not unit and (command == "mathrm" or not content.startswith(" "))
        inner = tokenize(bare)
        if len(inner) == 1 and inner[0].kind == "name" and len(bare) == 1:
            return [Token("name" if upright else "text", bare, None, spaced or content.startswith(" "))]
        return [Token(t.kind, t.text, t.number, t.spaced or spaced) for t in inner]
    if bare[:1].isdigit():
        return tokenize(content)  # \text{2 hours}
    return [Token("text", " ".join(content.split()), None, spaced)]


def _accented(command: str, content: str, spaced: bool) -> Token:
    content = content.strip()
    if not re.fullmatch(r"[A-Za-z]{1,6}|\\(?:imath|jmath|[a-z]{2,7})", content):
        raise UnreadableError(rf"what \{command} stands over")
    accent = "vec" if command in ("vec", "hat", "widehat", "overrightarrow") else command
    return Token(
        "name", rf"\{accent}{{{content.replace('imath', 'i').replace('jmath', 'j').lstrip(chr(92))}}}", None, spaced
    )
