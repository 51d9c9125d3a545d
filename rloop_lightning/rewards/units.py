"""Units and other words behind a number: which are units, and which two of them agree."""

from __future__ import annotations

import re
from collections import Counter

from rloop_lightning.rewards.altering import alters
from rloop_lightning.rewards.spelling import words

_SYNONYMS = {
    "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm", "meter": "m", "metre": "m",
    "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft",
    "yard": "yd", "mile": "mi",
    "gram": "g", "kilogram": "kg", "kilo": "kg", "milligram": "mg", "ounce": "oz",
    "ton": "t", "tonne": "t",
    "second": "s", "sec": "s", "minute": "min", "min": "min", "hour": "h", "hr": "h", "liter": "l", "litre": "l",
    "milliliter": "ml", "millilitre": "ml", "degree": "deg", "usd": "dollar", "buck": "dollar", "eur": "euro",
    "rs": "rupee", "kph": "km/h", "kmph": "km/h", "mph": "mi/h", "newton": "n", "joule": "j", "watt": "w", "volt": "v",
    "hertz": "hz", "pascal": "pa", "kelvin": "k", "ampere": "a", "amp": "a", "gbp": "sterling", "quid": "sterling",
    "people": "person", "men": "man", "women": "woman", "children": "child", "sq": "square", "cu": "cubic",
}  # fmt: skip
# Short words that are read as units; others of up to three letters can be products of variables.
_SHORT = words(
    "mm cm dm km m mg kg g lb lbs oz t s ms sec min hr hrs h in ft yd mi ml l deg usd eur rs kph mph hz khz mhz "
    "rad n j w v kj kw mw kv pa kpa nm um mol men man boy day cup egg box bag car cat dog pen way row set bus toy "
    "fan hat pig hen cow kid ways days cups eggs bags cars cats dogs pens rows sets toys kids boys pcs pts sq cu "
    "per of am pm oh"
)
_PRODUCTS = words("nm mg hr ms kw mw kv pa")  # without a space before them they are products, as in 2mg
_LETTERS = words("m s g h t L l N J W V K C F A")  # with a space before, in \text
_COUNTED = words("times digits roots each")  # behind a number, with nothing behind them
_SORTS = words("positive negative real even odd")  # of what was counted: 12 real solutions
# They change what the number means, or say that there is more than one number.
_FORBIDDEN = words(
    "if when where for and or to not no is are was be than less more least most only then else otherwise with "
    "without something some any all each every between from through except either neither both but even odd "
    "positive negative infinity infinite undefined unknown real reals about approximately around below under "
    "roughly nearly almost up digits base binary root roots remainder power x"
)
_FILLERS = frozenset(
    {
        "long",
        "wide",
        "tall",
        "high",
        "deep",
        "old",
        "away",
        "left",
        "total",
        "altogether",
        "the",
        "a",
        "an",
        "of",
        "each",
    }
)
_PREFIXES = {"kilo": "k", "centi": "c", "milli": "m", "micro": "u", "nano": "n", "mega": "mega", "giga": "g"}
# Units differ by the case of a prefix: MW is no mW. MHz is often written in small letters.
_MEGA = re.compile(r"\bM(?=(?:W|Wh|P[aA]|H[zZ]|V|J|N|eV|g|G|L|l|m|A|s)\b)|\bm(?=hz\b)")
_POUNDS = ("lb", "sterling")
MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_EXPONENT = re.compile(r"([a-z])\^(?:-?[1-3]|\{-?[1-3]\})(?![0-9])")
_SQUARED = re.compile(r"\b([a-z]+)\s+(squared|cubed)\b")

Unit = tuple[str, ...]  # its words, each in one spelling; with powers and slashes


def is_unit_word(word: str, spaced: bool) -> bool:
    """Whether a word of plain letters behind a number can be a unit. Otherwise it can be a product of variables."""
    if _is_forbidden(word.lower()) or (word in _PRODUCTS and not spaced):
        return False
    if word in _SHORT or (word.lower() in _SHORT and len(word) > 1):
        return True
    return len(word) >= 4 and (word.islower() or word.istitle()) and (spaced or word.lower() in _SYNONYMS)


def is_product_too(word: str, *, spaced: bool = False) -> bool:
    """Whether a unit's letters can be a product of variables as well; behind a space few can, as in 12 mg."""
    return word in _SHORT and len(word) in (2, 3) and (not spaced or word in _PRODUCTS)


def is_unit_letter(letter: str) -> bool:
    return letter in _LETTERS


def is_unit_text(text: str) -> bool:
    r"""Whether the content of a `\text{}` behind a number names a unit or what was counted."""
    text = _EXPONENT.sub(r"\1", _with_exponents(text.lower()))
    found = re.findall(r"[a-z]+", text)
    if found[-1:] and found[-1] in _COUNTED and set(found[:-1]) <= _SORTS:
        return True
    if len(found) > 1 and found[0] in _SORTS:
        found = found[1:]
    if not found or len(found) > 6 or re.search(r"[0-9=<>+(){}\[\]|;:,]", text):
        return False
    return not any(map(_is_forbidden, found))


def _is_forbidden(word: str) -> bool:
    return word in _FORBIDDEN or alters(word)


def _with_exponents(text: str) -> str:
    """`cm squared` as `cm^2`."""
    powers = {"squared": 2, "cubed": 3}
    return _SQUARED.sub(lambda found: f"{found[1]}^{powers[found[2]]}" if _is_unit_name(found[1]) else found[0], text)


def _is_unit_name(word: str) -> bool:
    return word in _SHORT or word in _LETTERS or word in _SYNONYMS or word.removesuffix("s") in _SYNONYMS


def unit(text: str) -> Unit:
    """The words of a unit in one spelling, sorted; `km per hour` and `kilometers/hour` give the same."""
    text = _MEGA.sub("mega", text)
    text = re.sub(r"\bper\b", "/", _with_exponents(text.lower()).replace(".", "")).replace("\\", " ")
    text = re.sub(r"\bsquare(?:d)?\s+([a-z]+)|\bsq\.?\s+([a-z]+)", lambda f: f"{f.group(1) or f.group(2)}^2", text)
    text = re.sub(r"\bcubic\s+([a-z]+)|\bcu\.?\s+([a-z]+)", lambda f: f"{f.group(1) or f.group(2)}^3", text)
    parts = re.findall(r"[a-z]+|[/]|\^\s*\{?\s*-?\d+\s*\}?", text)
    words: list[str] = []
    slash = False
    for part in parts:
        if part == "/":
            slash = True
        elif part[0] == "^" and words:
            words[-1] += "^" + re.sub(r"[^-0-9]", "", part)
        elif part[0] != "^" and part not in _FILLERS:
            words.append(("/" if slash else "") + _singular(part))
            slash = False
    counts = Counter(piece for word in words for piece in _split(word))
    return tuple(sorted(word if times == 1 else f"{word}^{times}" for word, times in counts.items()))  # m/s/s is m/s^2


def _singular(word: str) -> str:
    if word in _SYNONYMS:
        return _SYNONYMS[word]
    short = word[:-3] + "y" if word.endswith("ies") else word[:-1] if len(word) > 2 and word.endswith("s") else word
    for prefix, symbol in _PREFIXES.items():
        base = short.removeprefix(prefix)
        if base != short and base in _SYNONYMS:
            return symbol + _SYNONYMS[base]
    return _SYNONYMS.get(short, short)


def _split(word: str) -> list[str]:
    head, _, below = word.partition("/") if word[:1] != "/" else (word, "", "")
    return [head, "/" + below] if below else [head]


def agree(first: Unit, second: Unit) -> bool:
    """Whether two units can be the same: one is not given, or their words are the same."""
    if not first or not second or first == second:
        return True
    meant = [
        [tuple(sorted(word.replace("pound", one) for word in unit)) for one in _POUNDS] for unit in (first, second)
    ]
    return any(one == other for one, other in zip(*meant, strict=True))  # 5 pounds can be money and mass
