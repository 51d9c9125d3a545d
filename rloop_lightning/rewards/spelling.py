"""Brings an answer into one spelling: Unicode into LaTeX, one command for each symbol, no layout, no decoration.

`normalise` applies the tables below in order. No rule changes what an answer means; what is not in the tables stays,
and the tokenizer refuses it if it is no mathematics either. Every function takes time linear in the text's length.
"""

from __future__ import annotations

import re
import unicodedata


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# One character each. The minus signs include those that are dashes: before a number they mean minus.
CHARACTERS = {
    "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2015": "-",
    "\ufe63": "-", "\uff0d": "-",
    "\u00d7": r"\times ", "\u2715": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u2219": r"\cdot ",
    "\u2217": "*", "\u00f7": r"\div ", "\u2215": "/", "\u2044": "/", "\u00b1": r"\pm ", "\u2213": r"\mp ",
    "\u221a": r"\sqrt ", "\u221b": r"\sqrt[3] ", "\u221c": r"\sqrt[4] ", "\u221e": r"\infty ",
    "\u2264": r"\leq ", "\u2a7d": r"\leq ", "\u2265": r"\geq ", "\u2a7e": r"\geq ", "\u2260": r"\neq ",
    "\u2248": r"\approx ", "\u2261": r"\equiv ", "\u2208": r"\in ", "\u222a": r"\cup ", "\u2229": r"\cap ",
    "\u2205": r"\emptyset ", "\u2216": r"\setminus ", "\u2218": r"^{\circ}",
    "\u2103": r"^{\circ}\text{C}", "\u2109": r"^{\circ}\text{F}", "\u00b0": r"^{\circ}", "\u00ba": r"^{\circ}",
    "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u2115": r"\mathbb{N}", "\u211a": r"\mathbb{Q}",
    "\u2102": r"\mathbb{C}", "\u2032": "'", "\u2019": "'", "\u2018": "'", "\u27e8": r"\langle ", "\u27e9": r"\rangle ",
    "\u230a": r"\lfloor ", "\u230b": r"\rfloor ", "\u2308": r"\lceil ", "\u2309": r"\rceil ", "\u2220": r"\angle ",
    "\u3002": ".", "\uff0c": ",", "\u3001": ",", "\uff1a": ":", "\uff1b": ";", "\uff08": "(", "\uff09": ")",
    "\u200b": "", "\u2060": "", "\ufeff": "", "\u00ad": "",
}  # fmt: skip
_GREEK = str.split(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho - sigma tau upsilon phi"
    " chi psi omega"
)
CHARACTERS |= {chr(0x3B1 + i): rf"\{name} " for i, name in enumerate(_GREEK) if name not in ("-", "omicron")}
CHARACTERS |= {chr(0x391 + _GREEK.index(n.lower())): rf"\{n} " for n in
               str.split("Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega")}  # fmt: skip
CHARACTERS |= {"\u03d5": r"\phi ", "\u00b5": r"\mu ", "\u03f5": r"\epsilon ", "\u03d1": r"\theta "}

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱˣ", "0123456789+-nix", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢₓ", "0123456789+-nix", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
# A root sign takes the number, the name or the bracket behind it.
_ROOT = re.compile(r"\\sqrt(\[[34]\])? +(\d+(?:\.\d+)?|[A-Za-z]|\\pi\b)")
_RANGE = re.compile(r"(?<=[0-9])\s*[\u2012-\u2015]\s*(?=[0-9])")

_LEAD = r"(?:[Tt]he\s+)?(?:[Ff]inal\s+)?(?:[Aa]nswer|[Rr]esult)(?:\s+is)?"
# Intervals with turned brackets, ]1,3[, at the start or behind a sign: elsewhere, the brackets may be of two lists.
_START = r"(^|\\(?:cup|in|setminus)(?![a-zA-Z])|=)\s*"
_ENDS = r"[^][(),;]+[,;]\s*[^][(),;\s][^][(),;]*"
_REAL = r"\\mathbb\s*\{?R\}?\s*"
_RAISED_OR_BELOW = r"(?:\^\s*(?:{0}|\{{\s*{0}\s*\}})|_\s*\{{\s*{1}\s*0\s*\}})"

# Patterns in LaTeX, in order: pattern, replacement, a case.
RULES: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), replacement, case)
    for pattern, replacement, case in (
        (r"\\+(?=begin|end)", r"\\", r"\\begin"),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?", "", r"\left( \right)"),
        (r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|rm|bf|it|large|Large|normalsize|centering)"
         r"(?![a-zA-Z])", " ", r"\displaystyle 5"),
        (r"\\phantom\s*[-+=]", " ", r"\phantom -1"),
        (r"\\(?:[vh]?phantom|[vh]space\*?|label|tag\*?)\{[^{}]*\}", " ", r"\hspace{1em}"),
        (r"\{\\color\{?[a-zA-Z]+\}?\s*", "{", r"{\color{red} 5}"),
        (r"\\color\{[^{}]*\}|\\textcolor\{[^{}]*\}|\\colorbox\{[^{}]*\}", "", r"\color{red}{5}"),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", r"\dfrac{1}{2}"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom", r"\dbinom{5}{2}"),
        (r"(?<=\d)\s*\{,\s*\}\s*(?=\d{1,2}(?!\d)|\d{4})", ".", "3{,}5"),
        (r"\s*\{,\s*\}\s*|\\text\{,\}", r"\\,", "1{,}234"),
        (r",\s*\\!\s*", r"\\,", r"1,\!234"),
        (r"(?<=\d)(?:\\[,;:! ]|~|\\thinspace(?![a-zA-Z]))\s*(?=\d{3}(?!\d))", "\N{NARROW NO-BREAK SPACE}", r"1\,234"),
        (r"(?<=\d)'(?=\d{3}(?!\d))", "\N{NARROW NO-BREAK SPACE}", "1'234"),
        (r"\\q?quad(?=[a-zA-Z])", " ", r"\quadx"),
        (r"(?<=[\d)])(and|or)(?=[A-Z(])", r" \1 ", "(1,2)or(2,1)"),
        (r"\\(?:quad|qquad|enspace|enskip|thinspace|medspace|thickspace|space|allowbreak|newline)(?![a-zA-Z])"
         r"|(?<!\\)\\[,;:!> ]|~", " ", r"a\quad b"),
        (r"\\(?:mbox|text(?:rm|normal|it|up|sc|sf|tt)|hbox|emph)(?=\s*\{)", r"\\text", r"\mbox{cm}"),
        (r"\\operatorname\*?\s*\{([a-zA-Z])\}", r"\\mathrm{\1}", r"\operatorname{e}"),
        (r"\\operatorname\*?\s*\{([a-zA-Z]+)\}", r"\\\1 ", r"\operatorname{arcsin}"),
        (r"\\(?:lvert|rvert|vert)(?![a-zA-Z])", "|", r"\lvert x\rvert"),
        (r"\\[lr]?Vert(?![a-zA-Z])", r"\\|", r"\lVert v\rVert"),
        (r"\\(?:leqslant|le|leqq)(?![a-zA-Z])|<=|=<", r"\\leq ", "x <= 4"),
        (r"\\(?:geqslant|ge|geqq)(?![a-zA-Z])|>=", r"\\geq ", "x >= 4"),
        (r"\\lt(?![a-zA-Z])", "<", r"x\lt 3"),
        (r"\\gt(?![a-zA-Z])", ">", r"x\gt 3"),
        (r"(?<![\w.^}])(\d+!)=", r"\1 =", "5!=120"),
        (r"\\(?:ne|not\s*=)(?![a-zA-Z])|\\not\s*=|!=", r"\\neq ", "x != 3"),
        (r"\\(?:approxeq|simeq|thickapprox|doteq)(?![a-zA-Z])", r"\\approx ", r"x\simeq 3"),
        (r"\\(?:varnothing|O)(?![a-zA-Z])", r"\\emptyset ", r"\varnothing"),
        (r"\\(?:ast|star)(?![a-zA-Z])", "*", r"2\ast 3"),
        (r"\\var(epsilon|theta|phi|rho|sigma|kappa)(?![a-zA-Z])", r"\\\1 ", r"\varphi"),
        (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])", r"\\degree ", r"30^\circ"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{", r"\lbrace 1"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}", r"1\rbrace"),
        (r"\\lbrack(?![a-zA-Z])", "[", r"\lbrack 0,1)"),
        (r"\\rbrack(?![a-zA-Z])", "]", r"(0,1\rbrack"),
        (r"\{([^{}\\]*)\\over(?![a-zA-Z])([^{}\\]*)\}", r"{\\frac{\1}{\2}}", r"{3 \over 4}"),
        (r"\*\*(?=\s*[-(\w{])", "^", "x**2"),
        (r"(?<=[\d}])\s*\\mu\s*\\(?:text|mathrm)\{\s*([mgsLlNAVWF])\s*\}", r"\\text{ u\1}", r"10\mu\text{m}"),
        (r"(?<=[\d}])\s*\\(?:text|mathrm)\{\s*\\mu\s*([mgsLlNAVWF])\s*\}", r"\\text{ u\1}", r"10\text{ \mu m}"),
        (r"\bUSD?\s*\\\$|\bUSD\s*(?=\d)", r"\\$", "USD 5"),
        (r"\bEUR\s*(?=\d)", "\N{EURO SIGN}", "EUR 5"),
        (r"\bGBP\s*(?=\d)", "\N{POUND SIGN}", "GBP 5"),
        (r"(?<=\d)\s*([apAP])\.\s?[mM]\b\.?", r"\\text{ \1m}", "9:30 a.m."),
        (rf"^\\text\{{\s*{_LEAD}\s*[:=]?\s*\}}\s*[:=]?", "", r"\text{Answer} = 7"),
        (rf"^(\\text\{{)?\s*{_LEAD}\s*(?:(?<=is)\s|[:=])", r"\1", r"\text{The answer is 7}"),
        (rf"{_REAL}{_RAISED_OR_BELOW.format('[+]', '>')}", r"(0,\\infty)", r"\mathbb{R}^+"),
        (rf"{_REAL}{_RAISED_OR_BELOW.format('-', '<')}", r"(-\\infty,0)", r"\mathbb{R}^-"),
        (rf"{_START}\]({_ENDS})\[", r"\1(\2)", "]1,3["),
        (rf"{_START}\]({_ENDS})\]", r"\1(\2]", "]1,3]"),
        (rf"{_START}\[({_ENDS})\[", r"\1[\2)", "[1,3["),
    )
)  # fmt: skip
_PRICE = re.compile(r"^(-?)(?:USD?\s?)?\$(?=\s?\.?\d)")
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z{}%$,;!])")
_ENVIRONMENT = re.compile(r"\\begin")
_LAYOUT = re.compile(r"\s+")


def plain_characters(text: str) -> str:
    """`text` with every Unicode sign in its ASCII or LaTeX spelling. A character without one stays as it is."""
    if text.isascii():
        return text
    text = _RANGE.sub(r" \\text{to} ", text)
    text = _VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found.group()) + " ", text)
    text = _RAISED.sub(lambda found: "^{" + "".join(_SUPERSCRIPTS[c] for c in found.group()) + "}", text)
    text = _LOWERED.sub(lambda found: "_{" + "".join(_SUBSCRIPTS[c] for c in found.group()) + "}", text)
    text = "".join(map(_plain, text))
    return _ROOT.sub(r"\\sqrt\1{\2} ", text)


def _plain(character: str) -> str:
    if character in CHARACTERS:
        return CHARACTERS[character]
    if character.isspace():
        # A narrow space separates the thousands of a number.
        return "\N{NARROW NO-BREAK SPACE}" if character in "\u2009\u202f" else character if character == "\n" else " "
    folded = unicodedata.normalize("NFKC", character)
    return folded if folded.isascii() and folded.isprintable() else character


def normalise(text: str) -> str:
    """`text`, an answer, in the one spelling that the tokenizer reads."""
    text = plain_characters(text)
    if _DOUBLED.search(text) and (not _ENVIRONMENT.search(text) or r"\\begin" in text):
        text = text.replace("\\\\", "\\")  # LaTeX with its backslashes escaped
    if text.count("$") == 1:
        text = _PRICE.sub(r"\1\\$", text)
    for mark in ("$", r"\(", r"\)", r"\[", r"\]"):
        text = text.replace("\\" + mark, "\x01").replace(mark, " ").replace("\x01", "\\" + mark)
    for pattern, replacement, _ in RULES:
        text = pattern.sub(replacement, text)
    return _LAYOUT.sub(" ", text).strip()
